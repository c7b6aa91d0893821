from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.ops import context, conv, memory


@context.plain
class ChannelsLastConv2d(nn.Conv2d):
    """``nn.Conv2d`` over grids: (B, H, W, C) -> (B, H', W', C'), contiguous. Both permutes are views."""

    def forward(self, grid: Tensor) -> Tensor:
        out = conv.over_grid(grid, self)
        return conv.grid_of(super().forward(conv.maps_of(grid))) if out is None else out

    def _conv_forward(self, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        maps, groups = conv.repeated(maps, weight, self.groups)
        if groups == self.groups:
            return super()._conv_forward(maps, conv.channels_last(weight), bias)
        return F.conv2d(maps, conv.channels_last(weight), bias, self.stride, self.padding, self.dilation, groups)


@context.plain
class Upsample2x(nn.ConvTranspose2d):
    """Each cell becomes 2x2 cells by a linear map of its own: (B, H, W, C) -> (B, 2H, 2W, C')."""

    def __init__(self, dim: int, out_dim: int | None = None) -> None:
        super().__init__(dim, out_dim or dim, kernel_size=2, stride=2)

    def forward(self, grid: Tensor) -> Tensor:  # type: ignore[override]
        with memory.saving(grid):
            weight = conv.channels_last(self.weight)
            return conv.grid_of(F.conv_transpose2d(conv.maps_of(grid), weight, self.bias, stride=2))
