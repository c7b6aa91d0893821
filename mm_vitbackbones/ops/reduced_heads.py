"""Queries of a grid, and keys and values of the same grid reduced by a convolution of tiles and its norm.

In training on CUDA they are one function: it keeps what separate ones keep, and adds up the grid's gradients in place.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.ops import context, head_maps, linear, memory, narrow, norm, tile_maps
from mm_vitbackbones.ops import conv as conv_ops
from mm_vitbackbones.ops.chained import Context, Forked, finished, save_for_backward, saved_parts, then
from mm_vitbackbones.ops.kernels import norm as kernels
from mm_vitbackbones.ops.once import once_differentiable, typed


class Reduction(NamedTuple):
    """The parts of a module that maps grids by ``norm(conv(grid))``, with patches side by side."""

    conv: nn.Conv2d
    norm: nn.Module


Found = tuple[tuple[Tensor, ...], tuple[Tensor, Tensor, torch.dtype]]
"""The heads of queries, keys and values; the weight and bias of the map after attention; and its type."""


def heads(
    grid: Tensor | Forked,
    to_query: nn.Module,
    reduction: nn.Module,
    parts: Reduction | None,
    to_key_value: nn.Module,
    project: nn.Module,
    num_heads: int,
) -> Found | None:
    """The heads of ``to_query(grid)``, and those of the two halves of ``to_key_value(norm(conv(grid)))``:
    (B, H, W, C) -> (B, h, H * W, d), (B, h, H * W / r², d) twice; then the weight and bias of ``project`` and the type
    of the computation. None elsewhere than in eager mode on CUDA, and where one of the maps lacks a bias.

    Args:
        parts: of the reduction, or None: then it must be plain and leave the grid as it is.
    """
    if parts is None:
        if type(reduction) is not nn.Identity or not context.is_plain(reduction):
            return None
        found = linear.on_cuda(grid, to_query, to_key_value, project, biased=True)
        if found is None:
            return None
        query_weight, query_bias, weight, bias, *last, dtype = found
        if isinstance(grid, Forked):
            return then(grid, _HeadsOfOne, query_weight, query_bias, weight, bias, dtype, num_heads), (*last, dtype)
        query = head_maps.to_heads_by(grid, query_weight, query_bias, dtype, 1, num_heads)
        return query + head_maps.to_heads_by(grid, weight, bias, dtype, 2, num_heads), (*last, dtype)
    conv = parts.conv
    if isinstance(grid, Tensor) and not norm.is_for(grid):
        return None
    if not norm.is_over_channels(parts.norm) or not conv_ops.has_tiles(conv):
        return None
    found = linear.on_cuda(grid, to_query, conv, to_key_value, project, biased=True, known=True)
    if found is None:
        return None
    query_weight, query_bias, tile_weight, tile_bias, weight, bias, *last, dtype = found
    if grid.shape[1] < tile_weight.shape[2] or grid.shape[2] < tile_weight.shape[3]:  # there is no tile
        return None
    norm_weight, norm_bias, eps = norm.parameters_of(parts.norm)
    if torch.is_grad_enabled():
        maps = query_weight, query_bias, tile_weight, tile_bias, norm_weight, norm_bias, weight, bias
        return then(grid, _Heads, *maps, dtype, eps, num_heads), (*last, dtype)
    grid = finished(grid)
    reduced = F.conv2d(grid.permute(0, 3, 1, 2), conv_ops.copied(tile_weight), tile_bias, conv.stride)
    normed, _ = kernels.layer_norm(reduced.permute(0, 2, 3, 1), norm_weight, norm_bias, eps, dtype)
    query = head_maps.to_heads_by(grid, query_weight, query_bias, dtype, 1, num_heads)
    return query + head_maps.to_heads_by(normed, weight, bias, dtype, 2, num_heads), (*last, dtype)


class _Heads(torch.autograd.Function):
    """See ``heads``. The results are views of two maps."""

    @staticmethod
    def forward(
        ctx: Any,
        grid: Tensor,
        query_weight: Tensor,
        query_bias: Tensor,
        tile_weight: Tensor,
        tile_bias: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight: Tensor,
        bias: Tensor,
        dtype: torch.dtype,
        eps: float,
        num_heads: int,
    ) -> tuple[Tensor, ...]:
        parameters = query_weight, query_bias, tile_weight, tile_bias, norm_weight, norm_bias, weight, bias
        ctx.shapes, ctx.dtypes = (grid.shape, tile_weight.shape), [x.dtype for x in (grid, *parameters)]
        batch, _, _, channels = grid.shape
        ctx.again, sources = memory.sources_of(grid)
        grid = typed(grid, dtype)
        rows, query_weight = grid.reshape(-1, channels), narrow.of(query_weight, dtype)
        query = F.linear(rows, query_weight, narrow.of(query_bias, dtype))
        tiles = tile_maps.tiles_of(tile_maps.in_tiles(grid, tile_weight.shape), dtype)
        tile_weight = tile_maps.weight_of_tiles(tile_weight, dtype)
        reduced = F.linear(tiles, tile_weight, narrow.of(tile_bias, dtype))
        normed, statistics = kernels.layer_norm(reduced, norm_weight, norm_bias, eps, dtype)
        weight = narrow.of(weight, dtype)
        key_value = F.linear(normed, weight, narrow.of(bias, dtype))
        ctx.makes_tiles = bool(sources) or memory.state.policy == memory.LEAST  # again: they are a copy of the rows
        kept = sources or ((rows,) if ctx.makes_tiles else (rows, tiles))
        ctx.save_for_backward(query_weight, tile_weight, reduced, statistics, norm_weight, normed, weight, *kept)
        return head_maps.split_heads(query, batch, 1, num_heads) + head_maps.split_heads(key_value, batch, 2, num_heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_query: Tensor, *of_key_value: Tensor) -> Any:
        query_weight, tile_weight, reduced, statistics, norm_weight, normed, weight, *kept = ctx.saved_tensors
        needed, dtypes = ctx.needs_input_grad, ctx.dtypes
        shape, shape_of_tiles = ctx.shapes
        rows = kept[0] if ctx.again is None else ctx.again(*kept).view(-1, shape[-1])
        if ctx.makes_tiles:
            tiles = tile_maps.tiles_of(tile_maps.in_tiles(rows.view(shape), shape_of_tiles), rows.dtype)
        else:
            tiles = kept[1]
        of_query = head_maps.join_heads((of_query,), query_weight.shape[0])
        grad = head_maps.join_heads(of_key_value, weight.shape[0] // 2)
        of_reduced, of_norm, of_norm_bias = kernels.layer_norm_backward(
            torch.mm(grad, weight), None, reduced, statistics, norm_weight
        )
        of_grid = None
        if needed[0]:
            of_grid = linear.product(of_query, query_weight, dtypes[0]).view(shape)
            of_tiles = tile_maps.in_tiles(of_grid, shape_of_tiles)
            of_tiles += torch.mm(of_reduced, tile_weight).view(of_tiles.shape)
        return (
            of_grid,
            linear.product(of_query.t(), rows, dtypes[1]) if needed[1] else None,
            linear.column_sums(of_query, dtypes[2]) if needed[2] else None,
            tile_maps.of_weight_of_tiles(of_reduced, tiles, shape_of_tiles, dtypes[3]) if needed[3] else None,
            linear.column_sums(of_reduced, dtypes[4]) if needed[4] else None,
            typed(of_norm, dtypes[5]) if needed[5] else None,
            typed(of_norm_bias, dtypes[6]) if needed[6] else None,
            linear.product(grad.t(), normed, dtypes[7]) if needed[7] else None,
            linear.column_sums(grad, dtypes[8]) if needed[8] else None,
            None,
            None,
            None,
        )


class _HeadsOfOne(torch.autograd.Function):
    """``heads`` without a reduction. It adds up the grid's gradients in place. Two functions, one after the other in
    the backward pass, hold less: they are the form where the least is to be kept."""

    @staticmethod
    def forward(
        ctx: Any,
        grid: Tensor,
        query_weight: Tensor,
        query_bias: Tensor,
        weight: Tensor,
        bias: Tensor,
        dtype: torch.dtype,
        num_heads: int,
    ) -> tuple[Tensor, ...]:
        ctx.parts = first, second = Context(), Context()
        query = head_maps.ToHeads.forward(first, grid, query_weight, query_bias, dtype, 1, num_heads)
        key_value = head_maps.ToHeads.forward(second, grid, weight, bias, dtype, 2, num_heads)
        save_for_backward(ctx)
        return query + key_value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_query: Tensor, *of_key_value: Tensor) -> Any:
        (first, second, _), needed = saved_parts(ctx), ctx.needs_input_grad
        first.needs_input_grad, second.needs_input_grad = needed[:3], (needed[0], *needed[3:])
        of_grid, *of_first, _, _, _ = head_maps.ToHeads.backward.unchecked(first, of_query)
        more, *of_second, _, _, _ = head_maps.ToHeads.backward.unchecked(second, *of_key_value)
        return None if more is None else of_grid.add_(more), *of_first, *of_second, None, None
