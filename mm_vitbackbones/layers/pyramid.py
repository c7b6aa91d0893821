"""Levels at strides 4, 8, 16 and 32 from grids of one stride, for backbones whose blocks all have the same grid.

A patch of p pixels is a cell of the grid. Each level is made by halving or doubling cells until they are the nearest to
its stride; where they are still not equal (p = 14: cells of 3.5, 7, 14 and 28 pixels), the level is resized, so that
its cell i begins at pixel i * stride:

    pixels    0      14      28      42      56
    patches   |---0---|---1---|---2---|---3---|
    stride 16 |----0----|----1----|----2----|-      centre of cell 1: pixel 24, patch coordinate 24 / 14 - 0.5 = 1.21
    stride 4  |0|1|2|3|4|5|6|7|8|9| ...

A level of an image of H x W pixels has ceil(H / stride) x ceil(W / stride) cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from mm_vitbackbones.layers.conv import ChannelsLastConv2d, Upsample2x
from mm_vitbackbones.layers.norm import LayerNorm
from mm_vitbackbones.ops import norm
from mm_vitbackbones.ops.resize import largest_of, resize_cells

Size = tuple[int, int]


def halvings(patch_size: int, stride: int) -> int:
    """How often the cells of a grid of patches are halved to be the nearest to a stride; below 0: doubled."""
    return round(math.log2(patch_size / stride))


class ResizePyramid(nn.Module):
    """Each level is a grid, resized: no parameters.

    Args:
        dim: channels of the grids.
        patch_size: pixels.
        strides: of the levels that are asked for, by their numbers.
    """

    def __init__(self, dim: int, patch_size: int, strides: Mapping[int, int]) -> None:
        super().__init__()
        self.patch_size, self.strides = patch_size, strides
        self.dim = dim

    def level(self, grid: Tensor, index: int, size: Size) -> Tensor:
        """Level ``index``: the grid of its patches (B, H, W, C) -> (B, *size, dim)."""
        return resize_cells(grid, self.patch_size, self.strides[index], size)


class TapsPyramid(nn.Module):
    """Each level is the grid of another block, whose cells are doubled by transposed convolutions or joined by max
    pooling (XCiT, section 4.3; BEiT): to stride 4, two of them with a batch norm and a GELU between.

    ``resizes[index]`` makes a level.
    """

    def __init__(self, dim: int, patch_size: int, strides: Mapping[int, int]) -> None:
        super().__init__()
        self.patch_size, self.strides = patch_size, strides
        self.dim = dim
        self.resizes = nn.ModuleDict(
            {str(level): self._resize(dim, halvings(patch_size, stride)) for level, stride in strides.items()}
        )

    def _resize(self, dim: int, times: int) -> nn.Module:
        if times <= 0:
            return MaxPool(2**-times)
        steps: list[nn.Module] = [Upsample2x(dim)]
        for _ in range(times - 1):
            steps += [BatchNorm(dim), nn.GELU(), Upsample2x(dim)]
        return nn.Sequential(*steps)

    def level(self, grid: Tensor, index: int, size: Size) -> Tensor:
        """As ``ResizePyramid.level``."""
        times, stride = halvings(self.patch_size, self.strides[index]), self.strides[index]
        return resize_cells(self.resizes[str(index)](grid), self.patch_size / 2**times, stride, size)


class SimplePyramid(nn.Module):
    """All levels from one grid, without a top-down path (Li et al. 2022, ViTDet, section 3): transposed convolutions to
    smaller cells or max pooling to larger ones, then a 1x1 and a 3x3 convolution to ``out_channels``, each with a norm.

    Args:
        ceil: whether pooling keeps a last odd row and column; the official code drops them.
    """

    def __init__(
        self, dim: int, patch_size: int, strides: Mapping[int, int], out_channels: int = 256, ceil: bool = True
    ) -> None:
        super().__init__()
        self.patch_size, self.strides = patch_size, strides
        self.dim = out_channels
        self.resizes, self.projections = nn.ModuleDict(), nn.ModuleDict()
        for level, stride in strides.items():
            times, width = halvings(patch_size, stride), dim
            steps: list[nn.Module] = [] if times > 0 else [MaxPool(2**-times, ceil)]
            for i in range(times):
                steps += [LayerNorm(width, eps=1e-6), nn.GELU()] if i else []
                steps.append(Upsample2x(width, width // 2))
                width //= 2
            self.resizes[str(level)] = nn.Sequential(*steps)
            self.projections[str(level)] = nn.Sequential(
                ChannelsLastConv2d(width, out_channels, 1, bias=False),
                LayerNorm(out_channels, eps=1e-6),
                ChannelsLastConv2d(out_channels, out_channels, 3, padding=1, bias=False),
                LayerNorm(out_channels, eps=1e-6),
            )

    def level(self, grid: Tensor, index: int, size: Size | None = None) -> Tensor:
        """As ``ResizePyramid.level``; without a size, all cells that there are."""
        times, stride = halvings(self.patch_size, self.strides[index]), self.strides[index]
        level = self.projections[str(index)](self.resizes[str(index)](grid))
        return level if size is None else resize_cells(level, self.patch_size / 2**times, stride, size)


class MaxPool(nn.Module):
    """The largest of n x n cells: (B, H, W, C) -> (B, ceil(H/n), ceil(W/n), C); without ``ceil``, whole cells alone."""

    def __init__(self, side: int, ceil: bool = True) -> None:
        super().__init__()
        self.side, self.ceil = side, ceil

    def forward(self, grid: Tensor) -> Tensor:
        if self.side == 1:
            return grid
        return largest_of(grid, self.side, self.ceil)


class BatchNorm(nn.Module):
    """``nn.BatchNorm2d`` over grids (B, H, W, C). It is a part, so that a synchronised one may take its place."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, grid: Tensor) -> Tensor:
        return norm.batch_norm(grid, self.norm)


Pyramid = ResizePyramid | TapsPyramid | SimplePyramid
PYRAMIDS: dict[str, Callable[[int, int, Mapping[int, int]], Pyramid]] = {
    "resize": ResizePyramid,
    "taps": TapsPyramid,
    "simple": SimplePyramid,
}
"""By name. All but ``"simple"`` take a grid for each level as well as one for all."""
