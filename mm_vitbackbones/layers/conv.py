from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class OverGrids(nn.Module):
    """Before one of PyTorch's convolutions in a class's bases, it makes that one over grids: (B, H, W, C) -> (B, H',
    W', C'). Both permutes are views.

    The weight is kept in channels-last memory (its shape is unchanged), so that the result is a contiguous grid
    even where the input is a permuted NCHW image.
    """

    weight: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # `contiguous` would leave a depthwise weight as it is, since both memory formats describe it. Its gradient has
        # the strides of this one, and distributed training warns where they are not those of the weight.
        self.weight.data = self.weight.data.clone(memory_format=torch.channels_last)

    def forward(self, grid: Tensor) -> Tensor:
        return super().forward(grid.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ChannelsLastConv2d(OverGrids, nn.Conv2d):
    """``nn.Conv2d`` over grids."""
