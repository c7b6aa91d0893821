from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.layers.conv import ChannelsLastConv2d
from mm_vitbackbones.layers.norm import LayerNorm
from mm_vitbackbones.ops import context, memory
from mm_vitbackbones.ops.anysize import lack


@context.plain
class PatchEmbed(nn.Module):
    """Patches of a grid, embedded and normalised: (B, H, W, Cin) -> (B, ceil(H/stride), ceil(W/stride), dim).

    With ``kernel_size == stride`` the patches tile the grid (PVT, section 3.1); a grid that they do not fill is
    padded with zeros at the bottom and right. A larger odd kernel makes them overlap (PVTv2, section 3.2), with
    zero padding on all sides.
    """

    def __init__(self, in_channels: int, dim: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.tiles = kernel_size == stride
        padding = 0 if self.tiles else kernel_size // 2
        self.proj = ChannelsLastConv2d(in_channels, dim, kernel_size, stride, padding)
        # The official code leaves this norm at PyTorch's default epsilon, unlike those of the blocks.
        self.norm = LayerNorm(dim, eps=1e-5)

    def forward(self, grid: Tensor) -> Tensor:
        if self.tiles:
            grid = pad_to_multiple(grid, self.stride)
        with memory.saving(grid):
            return self.norm(self.proj(grid))


def pad_to_multiple(grid: Tensor, multiple: int) -> Tensor:
    """Zeros at the bottom and right of (B, H, W, C), up to sides divisible by ``multiple``; no copy if they are."""
    bottom, right = (lack(side, multiple) for side in grid.shape[1:3])
    # A compiled graph that asked whether to pad would be valid for one answer only.
    padded = context.is_compiling() or bottom or right
    return F.pad(grid, (0, 0, 0, right, 0, bottom)) if padded else grid
