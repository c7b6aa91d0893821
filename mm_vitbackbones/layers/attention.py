"""Spatial-reduction attention (PVT, PVTv2, MiT)."""

from __future__ import annotations

from torch import Tensor, nn

from mm_vitbackbones.layers.conv import ChannelsLastConv2d
from mm_vitbackbones.layers.norm import LayerNorm
from mm_vitbackbones.ops import attention, context, linear, norm


@context.plain
class ConvReduction(nn.Module):
    """Keys and values on a coarser grid: (B, H, W, C) -> (B, H//r, W//r, C). A remainder of rows or columns is
    left out, as in the official code."""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.conv = ChannelsLastConv2d(dim, dim, kernel_size=ratio, stride=ratio)
        self.norm = LayerNorm(dim, eps=1e-5)  # PyTorch's default epsilon, as official

    def forward(self, grid: Tensor) -> Tensor:
        return norm.for_linear(self.conv(grid), self.norm, again=False)


@context.plain
class SpatialReductionAttention(nn.Module):
    """Attention of every token of a grid (B, H, W, C) over a reduced grid of keys and values (PVT, equations 1 to 4).

    ``reduction`` maps a grid to the grid of the keys; None leaves it as it is.
    """

    def __init__(self, dim: int, num_heads: int, reduction: nn.Module | None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.reduction = nn.Identity() if reduction is None else reduction

    def forward(self, grid: Tensor) -> Tensor:
        key, value = linear.by(self.reduction(grid), self.kv).flatten(1, 2).chunk(2, dim=-1)
        out = attention.project_and_attend(grid.flatten(1, 2), self.q, key, value, self.proj, self.num_heads)
        return out.view_as(grid)
