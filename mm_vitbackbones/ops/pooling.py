"""Attention over pooled queries, keys and values (Li et al. 2022, MViTv2, sections 3.1 and 4.1).

B images, H x W grid, h heads, d channels of a head, C = h d. The *heads* of a grid are (B, H, W, h, d).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.ops import anysize, attention, context, conv


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
        tokens = [heads.flatten(1, 2).transpose(1, 2) for heads in (query, key, value)]
    else:
        query_sides, key_sides = ((side, side) for side in windows)
        counts = anysize.ceil_div(height, windows[0]), anysize.ceil_div(width, windows[0])
        tokens = [cut(query, windows[0], counts), cut(key, windows[1], counts), cut(value, windows[1], counts)]
    pairs = zip((rows, columns), query_sides, key_sides, strict=True)
    distances = [attention.by_distance(table, *sides) for table, *sides in pairs]
    out = attention.attend_heads_by_distance(*tokens, *distances)
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
    rows, columns = counts
    bottom, right = rows * side - heads.shape[1], columns * side - heads.shape[2]
    # A compiled graph that asked whether to pad would be valid for one answer only.
    if context.is_compiling() or bottom or right:
        heads = F.pad(heads, (0, 0, 0, 0, 0, right, 0, bottom))
    windows = heads.unflatten(2, (columns, side)).unflatten(1, (rows, side))
    return anysize.in_order(windows.permute(0, 1, 3, 5, 2, 4, 6)).flatten(4, 5).flatten(0, 2)


def joined(windows: Tensor, side: int, batch: int, height: int, width: int) -> Tensor:
    """``cut``, backwards: (K, h, side * side, d) -> (B, H, W, h, d)."""
    rows, columns = anysize.ceil_div(height, side), anysize.ceil_div(width, side)
    windows = windows.unflatten(0, (batch, rows, columns)).unflatten(4, (side, side))
    heads = anysize.in_order(windows.permute(0, 1, 4, 2, 5, 3, 6)).flatten(3, 4).flatten(1, 2)
    return anysize.first_cells(heads, height, width)
