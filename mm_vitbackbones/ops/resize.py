"""Grids resized."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def resize_grid(grid: Tensor, height: int, width: int, mode: str = "bilinear") -> Tensor:
    """(B, H, W, C) -> (B, height, width, C), half-pixel centres; the same tensor if the size is the same."""
    if grid.shape[1:3] == (height, width):
        return grid
    resized = F.interpolate(grid.permute(0, 3, 1, 2), size=(height, width), mode=mode, align_corners=False)
    return resized.permute(0, 2, 3, 1)
