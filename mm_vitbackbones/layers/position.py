from __future__ import annotations

import torch
from torch import Tensor, nn

from mm_vitbackbones.ops.resize import TableResize, resized_table

BILINEAR, BICUBIC = TableResize(), TableResize("bicubic")


class LearnedPosition(nn.Module):
    """Adds a learned absolute embedding to a grid (B, H, W, C), resized from its own grid.

    Each table is compared with its own grid. (The official PVT code compares every stage with the first one's
    token count and so fails at 448x448.)
    """

    def __init__(self, dim: int, height: int, width: int, resize: TableResize = BILINEAR) -> None:
        super().__init__()
        self.resize = resize
        self.table = nn.Parameter(torch.empty(1, height, width, dim))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, grid: Tensor) -> Tensor:
        return grid + resized_table(self.table, grid.shape[1], grid.shape[2], self.resize)
