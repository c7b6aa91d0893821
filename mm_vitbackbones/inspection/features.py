"""Feature maps as colours, and how alike their places are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

OUTLIERS = 0.01
"""The share of values at either end that colours do not tell apart."""


def principal_colours(maps: Sequence[Tensor]) -> list[Tensor]:
    """The first three principal components of the cells of all maps (C, H, W) as red, green and blue: (H, W, 3), from 0
    to 1. There is one basis, so a colour means the same in all of them.

    The sign of a component is that of its largest entry. A map of fewer channels has fewer colours.
    """
    cells = torch.cat([map.flatten(1).T.double() for map in maps])
    mean = cells.mean(0)
    values, vectors = torch.linalg.eigh((cells - mean).T @ (cells - mean))
    basis = vectors.flip(1)[:, :3]
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    basis = basis * largest.sign()
    parts = (cells - mean) @ basis
    ends = torch.quantile(_sample(parts), torch.tensor([OUTLIERS, 1 - OUTLIERS], dtype=parts.dtype), dim=0)
    parts = ((parts - ends[0]) / (ends[1] - ends[0]).clamp(min=1e-12)).clamp(0, 1)
    # What has no spread, because there are fewer components, has no colour.
    parts[:, values.flip(0)[: parts.shape[1]] <= 1e-9 * values[-1].clamp(min=1e-300)] = 0
    parts = F.pad(parts, (0, 3 - parts.shape[1])).float()
    sizes = [map.shape[1] * map.shape[2] for map in maps]
    return [part.unflatten(0, map.shape[1:]) for part, map in zip(parts.split(sizes), maps, strict=True)]


def _sample(parts: Tensor, most: int = 1_000_000) -> Tensor:
    """Rows at even steps: a quantile takes no more than some millions."""
    return parts[:: -(-len(parts) // most)]


def similarities(maps: Sequence[Tensor], row: int, column: int) -> list[Tensor]:
    """The cosine between a cell of the first map and each cell of all maps: (C, H, W) -> (H, W)."""
    chosen = F.normalize(maps[0][:, row, column].double(), dim=0)
    return [torch.einsum("c,chw->hw", chosen, F.normalize(map.double(), dim=0)).float() for map in maps]
