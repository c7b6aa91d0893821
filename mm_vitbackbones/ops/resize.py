"""Grids of other sizes."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mm_vitbackbones.ops import context, residual


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


def resized_table(table: Tensor, height: int, width: int, mode: str) -> Tensor:
    """``resize_grid`` of a table of positions (1, H, W, C).

    A bicubic resize is a linear map of rows, then of columns. On CUDA these are two small products: the gradient is
    deterministic, which PyTorch's own is not, and both are in the order of channels-last memory.
    """
    if mode != "bicubic" or table.shape[1:3] == (height, width):
        return resize_grid(table, height, width, mode)
    if context.device_type(table) != "cuda" or not context.is_eager() or table.is_meta:
        return resize_grid(table, height, width, mode)
    with context.autocast_to(table.device, None):
        wide = table[0].to(torch.promote_types(table.dtype, torch.float32))
        rows, columns = (
            _bicubic(before, after, wide.dtype, wide.device)
            for before, after in zip(wide.shape, (height, width), strict=False)
        )
        resized = columns @ (rows @ wide.flatten(1)).unflatten(1, wide.shape[1:])
        return resized.unsqueeze(0).to(table.dtype)


@functools.lru_cache(maxsize=64)
def _bicubic(before: int, after: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix (after, before) that resizes a line."""
    with torch.inference_mode(False), torch.no_grad():
        lines = torch.eye(before, dtype=torch.float64)[None, :, :, None]
        weights = F.interpolate(lines, size=(after, 1), mode="bicubic", align_corners=False)
        return weights[0, :, :, 0].t().to(device, dtype).contiguous()
