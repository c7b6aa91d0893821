"""Grids of other sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from mm_vitbackbones.ops import residual


def resize_grid(grid: Tensor, height: int, width: int, mode: str = "bilinear") -> Tensor:
    """(B, H, W, C) -> (B, height, width, C), half-pixel centres; the same tensor if the size is the same."""
    if grid.shape[1:3] == (height, width):
        return grid
    resized = F.interpolate(grid.permute(0, 3, 1, 2), size=(height, width), mode=mode, align_corners=False)
    return resized.permute(0, 2, 3, 1)


def resized_sum(grids: Sequence[Tensor], height: int, width: int) -> Tensor:
    """The sum of grids (B, *, *, C), each resized to (B, height, width, C)."""
    # A grid of this size goes first: a resized one is a new tensor, into which a sum may be written.
    total, *others = sorted(grids, key=lambda grid: grid.shape[1:3] != (height, width))
    for grid in others:
        resized = resize_grid(grid, height, width)
        total = total + resized if resized is grid else residual.add_fresh(total, resized)
    return total
