from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LearnedPosition(nn.Module):
    """Adds a learned absolute embedding to a grid (B, H, W, C), resized from its own grid (``mode``: bilinear or
    bicubic).

    Each table is compared with its own grid. (The official PVT code compares every stage with the first one's
    token count and so fails at 448x448.)
    """

    def __init__(self, dim: int, height: int, width: int, mode: str = "bilinear") -> None:
        super().__init__()
        self.mode = mode
        self.table = nn.Parameter(torch.empty(1, height, width, dim))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, grid: Tensor) -> Tensor:
        return grid + resize_grid(self.table, grid.shape[1], grid.shape[2], self.mode)


def resize_grid(grid: Tensor, height: int, width: int, mode: str = "bilinear") -> Tensor:
    """(B, H, W, C) -> (B, height, width, C), half-pixel centres; the same tensor if the size is the same."""
    if grid.shape[1:3] == (height, width):
        return grid
    resized = F.interpolate(grid.permute(0, 3, 1, 2), size=(height, width), mode=mode, align_corners=False)
    return resized.permute(0, 2, 3, 1)
