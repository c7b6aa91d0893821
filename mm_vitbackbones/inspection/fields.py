"""Effective receptive fields: which pixels the centre of a map depends on, and how much (Luo et al. 2016).

The energy of a pixel is the magnitude of the gradient of the centre's activation with respect to it, summed over the
pixel's channels and averaged over images. The activation is the sum over the map's channels, each with a sign that is
drawn once: after a layer norm the plain sum is a constant, and has no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SHARES = (0.2, 0.3, 0.5, 0.99)
"""Of the energy, whose areas are given (Ding et al. 2022, RepLKNet, table 10)."""


class Field(NamedTuple):
    """The receptive field of the centre of a map."""

    energy: Tensor
    """(H, W), of the pixels of the image."""
    centre: tuple[float, float]
    """Row and column of the activation: 0.5 is the centre of the first pixel."""


def receptive_fields(
    run: Callable[[Tensor], Mapping[str, Tensor]], image: Tensor, strides: Mapping[str, float] | None = None
) -> dict[str, Field]:
    """The field of each map that ``run`` makes of an image.

    Args:
        run: (1, C, H, W) -> maps (1, C', H', W') by name.
        strides: pixels between the cells of maps, where they are known. Otherwise the power of two that is nearest.
    """
    image = image.detach().clone().requires_grad_()
    with torch.enable_grad():
        maps = run(image)
        fields = {}
        for name, map in maps.items():
            row, column = map.shape[2] // 2, map.shape[3] // 2
            stride = (strides or {}).get(name) or nominal_stride(image, map)
            signs = torch.randint(2, (map.shape[1],), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
            activation = (map[0, :, row, column] * signs.to(map)).sum()
            (gradient,) = torch.autograd.grad(activation, image, retain_graph=True)
            energy = gradient[0].abs().sum(0, dtype=torch.float64).cpu()
            fields[name] = Field(energy, ((row + 0.5) * stride, (column + 0.5) * stride))
    return fields


def nominal_stride(image: Tensor, map: Tensor) -> float:
    """Pixels between the cells of a map, as a power of two."""
    ratio = max(image.shape[2] / map.shape[2], image.shape[3] / map.shape[3])
    return 2.0 ** round(float(torch.log2(torch.tensor(ratio))))


def mean_field(fields: Sequence[Field]) -> Field:
    """The mean of the fields of several images, which may have several sizes: their centres come together."""
    top, left = (max(field.centre[axis] for field in fields) for axis in (0, 1))
    offsets = [(round(top - field.centre[0]), round(left - field.centre[1])) for field in fields]
    sides = [
        max(offset[axis] + field.energy.shape[axis] for offset, field in zip(offsets, fields, strict=True))
        for axis in (0, 1)
    ]
    total = torch.zeros(*sides, dtype=torch.float64)
    for (y, x), field in zip(offsets, fields, strict=True):
        height, width = field.energy.shape
        total[y : y + height, x : x + width] += field.energy / len(fields)
    return Field(total, (top, left))


def areas(field: Field, shares: Sequence[float] = SHARES) -> list[int]:
    """For each share of the energy, the pixels of the smallest square around the centre that holds it; of a square that
    reaches beyond the image, those inside it. Zeros where there is no energy."""
    height, width = field.energy.shape
    rows = (torch.arange(height, dtype=torch.float64) + 0.5 - field.centre[0]).abs()
    columns = (torch.arange(width, dtype=torch.float64) + 0.5 - field.centre[1]).abs()
    away = torch.maximum(rows[:, None], columns).flatten()
    distances, order = away.sort()
    held = field.energy.flatten()[order].cumsum(0)
    if not held[-1] > 0:
        return [0] * len(shares)
    found = []
    for share in shares:
        first = int(torch.searchsorted(held, share * held[-1] * (1 - 1e-12)))
        reach = distances[min(first, len(held) - 1)]
        found.append(int((distances <= reach).sum()))
    return found
