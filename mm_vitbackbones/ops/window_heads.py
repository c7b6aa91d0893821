"""Window attention with a table of biases (Swin) on CUDA: few calls, each of them for the heads of all windows.

B images, H x W grid, C channels, h heads, d = C / h channels of a head, w side of a window, n = w * w places in it, K
windows in the batch; see ``ops.windows``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.ops import head_maps, linear, memory, narrow, windows
from mm_vitbackbones.ops.chained import Forked, Pending, finished, then
from mm_vitbackbones.ops.once import direct, once_differentiable


def attention(
    grid: Tensor | Forked,
    qkv: nn.Module,
    attend: windows.Attend,
    proj: nn.Module,
    table: Tensor,
    side: int,
    shift: int,
    num_heads: int,
) -> Tensor | Pending:
    """``windows.attention`` with the biases of a table, ((2w - 1)^2, h): (B, H, W, C) -> (B, H, W, C). In training
    ``proj`` may be left to the caller."""
    parameters = linear.on_cuda(grid, qkv, proj) if type(table) is nn.Parameter else None
    if parameters is not None and parameters[1] is not None and parameters[3] is not None:
        places = windows.windows_of(*grid.shape[:3], side, shift, grid.device)
        return _by_parameters(grid, parameters, places, table, num_heads)
    grid = finished(grid)
    return windows.attention(grid, qkv, attend, proj, windows.bias_of(table, side, shift), side, shift)


def _by_parameters(
    grid: Tensor | Forked, parameters: list[Any], places: windows.Windows, table: Tensor, num_heads: int
) -> Tensor | Pending:
    """``attention`` by the parameters of its linear maps, see ``linear.on_cuda``."""
    of_qkv, bias_of_qkv, of_proj, bias_of_proj, dtype = parameters
    trains = torch.is_grad_enabled()
    if trains:
        heads = then(grid, _ToWindows, of_qkv, bias_of_qkv, dtype, places, num_heads)
        biases = _bias(table, dtype, places)
    else:
        rows = linear.mapped(finished(grid).reshape(-1, grid.shape[-1]), of_qkv, bias_of_qkv, dtype)
        heads = _split(places.gather(rows, narrow.of(bias_of_qkv, dtype)), places, num_heads)
        biases = _biases(table, dtype, places)
    groups = [(*heads[3 * i : 3 * i + 3], bias) for i, bias in enumerate(biases)]
    results = [F.scaled_dot_product_attention(q, k, v, attn_mask=bias) for q, k, v, bias in groups]
    if not trains:
        return _mapped(places, grid.shape, of_proj, bias_of_proj, *results)
    projected = Pending(_OfWindows, (of_proj, bias_of_proj, dtype, places, grid.shape, *results))
    if memory.state.policy != memory.LEAST:
        return projected
    copies = narrow.of(of_proj, dtype), narrow.of(bias_of_proj, dtype)
    return memory.made(projected.result(), partial(_mapped, places, grid.shape), *copies, *results)


def _mapped(places: windows.Windows, shape: torch.Size, weight: Tensor, bias: Tensor, *heads: Tensor) -> Tensor:
    """A linear map of all heads of each token, in their type."""
    return linear.mapped(_gathered(places, *heads), weight, bias, heads[0].dtype).view(shape)


def _split(rows: Tensor, places: windows.Windows, num_heads: int) -> tuple[Tensor, ...]:
    """Windows (K * n, 3C) -> queries, keys and values of the first group, then of the others, each (K', h, n, d)."""
    sizes = places.two_sizes
    parts = (rows,) if len(sizes) == 1 else rows.split_with_sizes([size * places.places for size in sizes])
    split = [head_maps.split_heads(part, size, 3, num_heads) for part, size in zip(parts, sizes, strict=True)]
    return split[0] if len(split) == 1 else (*split[0], *split[1])


def _join(heads: tuple[Tensor, ...]) -> Tensor:
    """The inverse."""
    width = heads[0].shape[1] * heads[0].shape[3]
    groups = [head_maps.join_heads(heads[i : i + 3], width) for i in range(0, len(heads), 3)]
    return groups[0] if len(groups) == 1 else torch.cat(groups)


def _gathered(places: windows.Windows, *heads: Tensor) -> Tensor:
    """The heads of each group of windows, (K', h, n, d) -> all heads of each token, (B * H * W, C)."""
    rows = head_maps.join_heads(heads, heads[0].shape[1] * heads[0].shape[3], 0)
    return rows.index_select(0, places.origin)


def _biases(table: Tensor, dtype: torch.dtype, places: windows.Windows) -> tuple[Tensor, ...]:
    """The bias of the first group, (1, h, n, n), and of each window of the others, (K', h, n, n)."""
    n, shift, num_heads = places.places, places.shift, table.shape[1]
    positions, masks = windows.kept_constants(places.side, shift, True, table.device)
    bias = table.index_select(0, positions).view(1, n, -1, num_heads).permute(0, 3, 1, 2)
    if masks is None:
        bias = bias.to(dtype, memory_format=torch.contiguous_format)
    else:
        bias = torch.add(bias, masks, out=bias.new_empty((*masks.shape[:1], *bias.shape[1:]), dtype=dtype))
    found = [(bias[:1] if shift else bias)[..., :n]] if places.has_first else []
    if places.of_others is not None:
        found.append(bias.index_select(0, places.of_others)[..., :n])
    return tuple(found)


class _ToWindows(torch.autograd.Function):
    """The heads of windows; padding has the bias of the linear map."""

    @staticmethod
    def forward(
        ctx: Any,
        grid: Tensor,
        weight: Tensor,
        bias: Tensor,
        dtype: torch.dtype,
        places: windows.Windows,
        num_heads: int,
    ) -> tuple[Tensor, ...]:
        ctx.shape, ctx.places = grid.shape, places
        rows = linear.mapped_in(ctx, grid, weight, bias, dtype)
        return _split(places.gather(rows, narrow.of(bias, dtype)), places, num_heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        grad = _join(grads)
        # All places have the bias, those in the padding, too.
        of_grid, of_weight, of_bias = linear.gradients(ctx, ctx.places.scatter(grad), grad)
        return None if of_grid is None else of_grid.view(ctx.shape), of_weight, of_bias, None, None, None


class _OfWindows(torch.autograd.Function):
    """A linear map of all heads of each token, which can be gathered again: attention keeps its results."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        bias: Tensor,
        dtype: torch.dtype,
        places: windows.Windows,
        shape: torch.Size,
        *heads: Tensor,
    ) -> Tensor:
        ctx.places, ctx.num_heads = places, heads[0].shape[1]
        rows = _gathered(places, *heads)
        if memory.state.policy == memory.LEAST:
            memory.made(rows, partial(_gathered, places), *heads)
        return linear.mapped_in(ctx, rows, weight, bias, dtype).view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        needed = ctx.needs_input_grad
        wanted = any(needed[5:]), *needed[:2]
        of_rows, *of_parameters = linear.gradients(ctx, grad.reshape(-1, grad.shape[-1]), wanted=wanted)
        of_heads: tuple[Tensor | None, ...] = (None,) * len(needed[5:])
        if of_rows is not None:
            sizes, n, padding = ctx.places.two_sizes, ctx.places.places, ctx.places.padding
            of_windows = of_rows.index_select(0, ctx.places.tokens)
            if padding.shape[0]:
                of_windows.index_fill_(0, padding, 0.0)
            parts = of_windows.split_with_sizes([size * n for size in sizes])
            pairs = zip(parts, sizes, strict=True)
            of_heads = tuple([head_maps.split_heads(part, size, 1, ctx.num_heads)[0] for part, size in pairs])
        return *of_parameters, None, None, None, *of_heads


class _Bias(torch.autograd.Function):
    """``_biases``."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, dtype: torch.dtype, places: windows.Windows) -> tuple[Tensor, ...]:
        ctx.side, ctx.dtype = places.side, table.dtype
        return _biases(table, dtype, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        sums = [grad.sum(0, dtype=ctx.dtype) for grad in grads]
        total = sums[0] if len(sums) == 1 else sums[0].add_(sums[1])
        return windows.table_gradient(total, ctx.side), None, None


_bias = direct(_Bias)
