"""Attention over pooled queries, keys and values (Li et al. 2022, MViTv2, sections 3.1 and 4.1).

B images, H x W grid, h heads, d channels of a head, C = h d. The *heads* of a grid are (B, H, W, h, d).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.ops import anysize, attention, context, conv
from mm_vitbackbones.ops.kernels import registration


def pooled(grid: Tensor, pool: nn.Module, num_heads: int) -> Tensor:
    """A depthwise convolution of each head by the same weight: (B, H, W, C) -> heads (B, H', W', h, d).

    Args:
        pool: a convolution over grids of d channels, without a bias.
    """
    if num_heads == 1:
        return pool(grid).unsqueeze(3)
    if not isinstance(pool, nn.Conv2d) or not context.is_plain(pool):
        return pooled_reference(grid, pool, num_heads)
    # One convolution of all channels, whose weight is repeated, copies no map.
    weight = conv.channels_last(pool.weight.repeat(num_heads, 1, 1, 1))
    maps = F.conv2d(grid.permute(0, 3, 1, 2), weight, None, pool.stride, pool.padding, groups=len(weight))
    return maps.permute(0, 2, 3, 1).unflatten(-1, (num_heads, -1))


def pooled_parts(grid: Tensor, pools: Sequence[nn.Module], num_heads: int) -> tuple[Tensor, ...]:
    """``pooled`` of queries, keys and values, in parts of the channels: (B, H, W, 3C) -> three heads. In eager mode
    convolutions with the same steps are one."""
    query, key, value = pools
    kinds = [_kind(pool) for pool in pools] if context.is_eager() else [None]
    if None in kinds or kinds[1] != kinds[2]:
        parts = grid.chunk(3, dim=-1)
        return tuple([pooled(part, pool, num_heads) for part, pool in zip(parts, pools, strict=True)])
    if kinds[0] == kinds[1]:
        return _by_one(grid, pools, num_heads)
    width = grid.shape[-1] // 3
    of_queries, of_others = grid.split_with_sizes((width, 2 * width), dim=-1)
    return *_by_one(of_queries, (query,), num_heads), *_by_one(of_others, (key, value), num_heads)


def _kind(pool: nn.Module) -> tuple[Any, ...] | None:
    """What convolutions that become one share; None where the module is to be called."""
    if not isinstance(pool, nn.Conv2d) or not context.is_plain(pool):
        return None
    return pool.kernel_size, pool.stride, pool.padding


def _by_one(grid: Tensor, pools: Sequence[Any], num_heads: int) -> tuple[Tensor, ...]:
    """``pooled`` of as many parts of the channels as there are convolutions, which differ in their weights alone."""
    weights = [pool.weight for pool in pools]
    if weights[0].dtype == torch.float32 or context.autocast_dtype(grid.device) is None:
        stacked = torch.stack(weights)
    else:
        with context.autocast_to(grid.device, None):  # which joins no bf16 where it is to fp16
            stacked = torch.stack(weights)
    weight = stacked.unsqueeze(1).expand(-1, num_heads, -1, -1, -1, -1).flatten(0, 2)
    stride, padding = pools[0].stride, pools[0].padding
    maps = F.conv2d(grid.permute(0, 3, 1, 2), weight, None, stride, padding, groups=len(weight))
    return maps.permute(0, 2, 3, 1).unflatten(-1, (len(pools), num_heads, -1)).unbind(3)


def pooled_reference(grid: Tensor, pool: nn.Module, num_heads: int) -> Tensor:
    """``pooled``, with heads as if they were images."""
    of_heads = anysize.in_order(grid.unflatten(-1, (num_heads, -1)).permute(0, 3, 1, 2, 4)).flatten(0, 1)
    return anysize.in_order(pool(of_heads).unflatten(0, (grid.shape[0], num_heads)).permute(0, 2, 3, 1, 4))


def attend(
    query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor, windows: tuple[int, int] | None
) -> Tensor:
    """Attention with terms for the distance in rows and columns, and the queries added to its result: heads of a grid
    (B, H, W, h, d), over those of another grid -> (B, H, W, C).

    Args:
        rows: the table of distances in rows; see ``attention.by_distance``.
        columns: that in columns.
        windows: the sides of windows of queries and of keys; None: all attend to all. Each grid is padded by itself
            with zeros, at the bottom and right, and a key of zeros takes part, as in the official code.
    """
    batch, height, width = query.shape[:3]
    if windows is None:
        query_sides, key_sides = (height, width), (key.shape[1], key.shape[2])
        queries, keys = query.flatten(1, 2).transpose(1, 2), key.flatten(1, 2).transpose(1, 2)
        values = value.flatten(1, 2).transpose(1, 2)
    else:
        query_sides, key_sides = ((side, side) for side in windows)
        counts = anysize.ceil_div(height, windows[0]), anysize.ceil_div(width, windows[0])
        queries, keys, values = (
            cut(query, windows[0], counts),
            cut(key, windows[1], counts),
            cut(value, windows[1], counts),
        )
    of_rows = attention.by_distance(rows, query_sides[0], key_sides[0])
    of_columns = attention.by_distance(columns, query_sides[1], key_sides[1])
    out = attention.attend_heads_by_distance(queries, keys, values, of_rows, of_columns)
    if windows is None:
        out = out.transpose(1, 2).unflatten(1, (height, width))
    else:
        out = joined(out, windows[0], batch, height, width)
    return anysize.in_order(out + query).flatten(3)


def cut(heads: Tensor, side: int, counts: tuple[int, int]) -> Tensor:
    """The windows of heads (B, H, W, h, d), padded with zeros: (K, h, side * side, d).

    Args:
        counts: rows and columns of windows: ceil(H / side) and ceil(W / side), as in the grid of the queries.
    """
    # In code for any size, each index into a window would be several quotients: longer to compile than all the rest.
    if context.is_compiling_to_run():
        return cut_windows(heads, side, *counts)
    return _cut(heads, side, *counts)


def _cut(heads: Tensor, side: int, rows: int, columns: int) -> Tensor:
    bottom, right = rows * side - heads.shape[1], columns * side - heads.shape[2]
    # A compiled graph that asked whether to pad would be valid for one answer only.
    if context.is_compiling() or bottom or right:
        heads = F.pad(heads, (0, 0, 0, 0, 0, right, 0, bottom))
    windows = heads.unflatten(2, (columns, side)).unflatten(1, (rows, side))
    return anysize.in_order(windows.permute(0, 1, 3, 5, 2, 4, 6)).flatten(4, 5).flatten(0, 2)


def joined(windows: Tensor, side: int, batch: int, height: int, width: int) -> Tensor:
    """``cut``, backwards: (K, h, side * side, d) -> (B, H, W, h, d)."""
    rows, columns = anysize.ceil_div(height, side), anysize.ceil_div(width, side)
    if context.is_compiling_to_run():
        return join_windows(windows, side, batch, rows, columns, height, width)
    return _joined(windows, side, batch, rows, columns, height, width)


def _joined(windows: Tensor, side: int, batch: int, rows: int, columns: int, height: int, width: int) -> Tensor:
    windows = windows.unflatten(0, (batch, rows, columns)).unflatten(4, (side, side))
    heads = anysize.in_order(windows.permute(0, 1, 4, 2, 5, 3, 6)).flatten(3, 4).flatten(1, 2)
    return anysize.first_cells(heads, height, width)


# ---- as operators of compiled graphs, each of which is the other's gradient; their results have memory of their own


def _own_cut(heads: Tensor, *sizes: int) -> Tensor:
    return registration.own(_cut(heads, *sizes), heads)


def _own_joined(windows: Tensor, *sizes: int) -> Tensor:
    return registration.own(_joined(windows, *sizes), windows)


_WINDOWS = "int side, SymInt batch, SymInt rows, SymInt columns, SymInt height, SymInt width"
cut_windows = registration.operator(
    "cut_windows(Tensor heads, int side, SymInt rows, SymInt columns) -> Tensor", _own_cut, _own_cut
)
join_windows = registration.operator(f"join_windows(Tensor windows, {_WINDOWS}) -> Tensor", _own_joined, _own_joined)


def _keep_size(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    heads, *ctx.windows = inputs
    ctx.batch, ctx.height, ctx.width = heads.shape[:3]


def _keep_windows(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, side, _, rows, columns, _, _ = inputs
    ctx.windows = side, rows, columns


registration.in_graphs(
    "cut_windows",
    lambda heads, side, rows, columns: heads.new_empty(
        heads.shape[0] * rows * columns, heads.shape[3], side * side, heads.shape[4]
    ),
    lambda ctx, grad: (
        join_windows(grad, ctx.windows[0], ctx.batch, *ctx.windows[1:], ctx.height, ctx.width),
        None,
        None,
        None,
    ),
    _keep_size,
)
registration.in_graphs(
    "join_windows",
    lambda windows, side, batch, rows, columns, height, width: windows.new_empty(
        batch, height, width, windows.shape[1], windows.shape[3]
    ),
    lambda ctx, grad: (cut_windows(grad, *ctx.windows), *(None,) * 6),
    _keep_windows,
)
