"""Linear maps of the tiles of a grid, which are convolutions whose patches are side by side. In training on CUDA; see
``ops.linear``.

B images, H x W grid, C channels, tiles of r x s places, h x w tiles, O channels of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.ops import context, linear, narrow
from mm_vitbackbones.ops.once import direct, once_differentiable


def over_tiles(grid: Tensor, conv: nn.Module) -> Tensor:
    """A convolution whose patches are side by side, as a linear map of them, where ``linear.trains_on_cuda``:
    (B, H, W, C) -> (B, h, w, O). A remainder of rows or columns is left out."""
    dtype = context.autocast_dtype(grid.device) or grid.dtype
    return _linear_of_tiles(grid, conv.weight, conv.bias, dtype)


class _LinearOfTiles(torch.autograd.Function):
    """``_Linear`` of the tiles of a grid (B, H, W, C) by a weight (O, C, r, s).

    In the memory of a grid, a tile has the order (r, s, C), for which the weight is copied, and its gradient back.
    Where the grid is a view of maps, such as an image, a tile is taken in the order of the weight.
    """

    @staticmethod
    def forward(ctx: Any, grid: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.shapes, ctx.dtypes = (grid.shape, weight.shape), (grid.dtype, weight.dtype, bias.dtype)
        ctx.of_maps = of_maps = grid.stride(3) > grid.stride(2)
        tiles = in_tiles(grid, weight.shape)
        shape = *tiles.shape[:3], weight.shape[0]
        if of_maps:
            rows = _packed(tiles.permute(0, 1, 2, 5, 3, 4), dtype).view(-1, weight[0].numel())
            weight = narrow.of(weight, dtype).reshape(weight.shape[0], -1)
        else:
            rows, weight = tiles_of(tiles, dtype), weight_of_tiles(weight, dtype)
        ctx.save_for_backward(rows, weight)
        return F.linear(rows, weight, narrow.of(bias, dtype)).view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        rows, weight = ctx.saved_tensors
        needed, of_maps, dtypes, (shape, shape_of_weight) = ctx.needs_input_grad, ctx.of_maps, ctx.dtypes, ctx.shapes
        places, (channels, *window) = grad.shape[:3], shape_of_weight[1:]
        grad, of_grid, of_weight = grad.reshape(-1, grad.shape[3]), None, None
        if needed[0]:
            of_rows = torch.mm(grad, weight)
            if of_maps:
                of_tiles = of_rows.view(*places, channels, *window).permute(0, 1, 2, 4, 5, 3)
            else:
                of_tiles = of_rows.view(*places, *window, channels)
            if (places[1] * window[0], places[2] * window[1]) == shape[1:3]:
                of_grid = _packed(of_tiles.transpose(2, 3), dtypes[0]).view(shape)
            else:
                of_grid = torch.zeros(shape, dtype=dtypes[0], device=grad.device)
                in_tiles(of_grid, shape_of_weight).copy_(of_tiles)
        if needed[1] and of_maps:
            of_weight = linear.product(grad.t(), rows, dtypes[1]).view(shape_of_weight)
        elif needed[1]:
            of_weight = of_weight_of_tiles(grad, rows, shape_of_weight, dtypes[1])
        return of_grid, of_weight, linear.column_sums(grad, dtypes[2]) if needed[2] else None, None


def in_tiles(grid: Tensor, window: Sequence[int]) -> Tensor:
    """The tiles of a grid as a view: (B, H, W, C) -> (B, h, w, r, s, C). A remainder of rows or columns is left out.

    Args:
        window: the shape of a weight (O, C, r, s).
    """
    batch, height, width, channels = grid.shape
    down, right = window[2:]
    rows, columns = height // down, width // right
    if (rows * down, columns * right) != (height, width):
        grid = grid[:, : rows * down, : columns * right]
    return grid.view(batch, rows, down, columns, right, channels).transpose(2, 3)


def tiles_of(tiles: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows that a weight of tiles is for, in a type: (B, h, w, r, s, C) -> (B * h * w, r * s * C)."""
    _, _, _, down, right, channels = tiles.shape
    return _packed(tiles, dtype).view(-1, down * right * channels)


def weight_of_tiles(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """(O, C, r, s) -> (O, r * s * C), in a type."""
    return _packed(weight.permute(0, 2, 3, 1), dtype).view(weight.shape[0], -1)


def of_weight_of_tiles(grad: Tensor, tiles: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The gradient of the weight (O, C, r, s) in a type, from that of the results (R, O)."""
    out, channels, down, right = shape
    return linear.product(grad.t(), tiles, dtype).view(out, down, right, channels).permute(0, 3, 1, 2).contiguous()


def _packed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """In contiguous memory, and in a type: one pass."""
    return x.contiguous() if x.dtype == dtype else x.to(dtype, memory_format=torch.contiguous_format)


_linear_of_tiles = direct(_LinearOfTiles)
