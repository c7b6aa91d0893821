"""Softmax attention of tokens, and its algebra.

B batch, N query tokens, M key tokens, C channels, h heads, d = C / h channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.ops import anysize, bias_sums, context, head_maps, linear, onednn, reduced_heads, resize, rotary
from mm_vitbackbones.ops.chained import Forked, Pending, finished
from mm_vitbackbones.ops.kept import Kept
from mm_vitbackbones.ops.kernels import registration
from mm_vitbackbones.ops.once import once_differentiable
from mm_vitbackbones.ops.windows import ALIGNED

CHANNELS_AT_ONCE, MOST_CHANNELS = 8, 256
"""Of a head, for CUDA's fused kernels: a multiple of the first and, for the faster ones, at most the second."""
LARGEST_MASK = 2**31 - 1
"""Elements, which kernels count in 32 bits."""


def attend(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """softmax(q k' / sqrt(d)) v of each head: tokens (B, N, C) over tokens (B, M, C) -> (B, N, C). No N x M matrix is
    stored."""
    q, k, v = (tokens.unflatten(-1, (num_heads, -1)).transpose(1, 2) for tokens in (query, key, value))
    return joined(F.scaled_dot_product_attention(q, k, v))


def joined(heads: Tensor) -> Tensor:
    """(B, h, N, d) -> (B, N, C)."""
    return anysize.in_order(heads.transpose(1, 2)).flatten(2)


def attend_to_each_other(
    tokens: Tensor | Forked, to_qkv: nn.Module, project: nn.Module, num_heads: int, again: bool = False
) -> Tensor | Pending:
    """``project(attend(q, k, v))`` of queries, keys and values of the same tokens: (B, N, C) -> (B, N, C). In training
    on CUDA ``project`` may be left to the caller.

    Args:
        to_qkv: a linear map, C -> 3C.
        project: another one, C -> C.
        again: whether training on a CPU computes queries, keys and values again.
    """
    shape = tokens.shape
    if (found := linear.on_cuda(tokens, to_qkv, project, biased=True)) is not None:
        weight, bias, weight2, bias2, dtype = found
        query, key, value = head_maps.to_heads_by(tokens, weight, bias, dtype, 3, num_heads)
        attended = F.scaled_dot_product_attention(query, key, value)
        return head_maps.of_heads_by(attended, weight2, bias2, dtype, shape[:-1])
    tokens = finished(tokens)
    if (heads := head_maps.to_heads(tokens, to_qkv, 3, num_heads)) is not None:
        query, key, value = heads
        return linear.by(joined(F.scaled_dot_product_attention(query, key, value)), project)
    if bias_sums.is_for(tokens, to_qkv, project):
        # As a matrix: in memory of its own choice the compiler may put gaps between images, and copy them for the map.
        query, key, value = bias_sums.queries_keys_values(tokens.flatten(0, 1), to_qkv)
        attended = attend(query.view(shape), key.view(shape), value.view(shape), num_heads)
        return bias_sums.project(attended.flatten(0, 1), project, to_qkv).unflatten(0, shape[:-1])
    query, key, value = linear.linear(tokens, to_qkv, again).chunk(3, dim=-1)
    context.release(tokens)
    return linear.linear(attend(query, key, value, num_heads), project)


def attend_turned(
    tokens: Tensor | Forked,
    to_query: nn.Module,
    to_key: nn.Module,
    to_value: nn.Module,
    project: nn.Module,
    rotation: rotary.Rotation,
    num_heads: int,
) -> Tensor | Pending:
    """``attend_to_each_other`` with queries and keys that are turned by their position: (B, N, C) -> (B, N, C)."""
    layers, shape = (to_query, to_key, to_value), tokens.shape[:-1]
    if (heads := rotary.to_heads(tokens, layers, rotation, num_heads)) is not None:
        query, key, value = heads
        attended = F.scaled_dot_product_attention(query, key, value)
        if (found := linear.on_cuda(attended, project, biased=True, known=True)) is None:
            return linear.by(joined(attended), project)
        weight, bias, dtype = found
        return head_maps.of_heads_by(attended, weight, bias, dtype, shape)
    tokens = finished(tokens)
    query, key, value = (linear.linear(tokens, layer) for layer in layers)
    context.release(tokens)
    query, key = (rotary.rotate(x, rotation, num_heads) for x in (query, key))
    return linear.linear(attend(query, key, value, num_heads), project)


def _projected(heads: Tensor, project: nn.Module, shape: Sequence[int]) -> Tensor:
    """A linear map of all heads together, in training on CUDA: (B, h, N, d) -> (*shape, C)."""
    out = head_maps.of_heads(heads, project, shape)
    return linear.by(joined(heads), project).view(*shape, -1) if out is None else out


def attend_to_reduced(
    grid: Tensor | Forked,
    to_query: nn.Module,
    reduction: nn.Module,
    parts: reduced_heads.Reduction | None,
    to_key_value: nn.Module,
    project: nn.Module,
    num_heads: int,
) -> Tensor | Pending:
    """``project(attend(q, k, v))`` of queries of a grid and keys and values of its reduction:
    (B, H, W, C) -> (B, H, W, C). In training on CUDA ``project`` may be left to the caller.

    Args:
        to_query: a linear map, C -> C.
        reduction: maps a grid to the grid of the keys.
        parts: of the reduction, if it is a plain module that has them and nothing else.
        to_key_value: a linear map, C -> 2C.
        project: another one, C -> C.
    """
    if (found := reduced_heads.heads(grid, to_query, reduction, parts, to_key_value, project, num_heads)) is not None:
        (query, key, value), by = found
        return head_maps.of_heads_by(F.scaled_dot_product_attention(query, key, value), *by, grid.shape[:-1])
    grid = finished(grid)
    reduced = reduction(grid)
    of_reduced = head_maps.to_heads(reduced, to_key_value, 2, num_heads)
    of_grid = None if of_reduced is None else head_maps.to_heads(grid, to_query, 1, num_heads)
    heads = None if of_reduced is None or of_grid is None else (*of_grid, *of_reduced)
    if heads is not None:
        query, key, value = heads
        return _projected(F.scaled_dot_product_attention(query, key, value), project, grid.shape[:-1])
    key, value = linear.by(reduced, to_key_value).flatten(1, 2).chunk(2, dim=-1)
    return project_and_attend(grid.flatten(1, 2), to_query, key, value, project, num_heads).view_as(grid)


def project_and_attend(
    tokens: Tensor, to_query: nn.Module, key: Tensor, value: Tensor, project: nn.Module, num_heads: int
) -> Tensor:
    """``project(attend(to_query(tokens), key, value))``: tokens (B, N, C) over tokens (B, M, C) -> (B, N, C).

    Args:
        to_query: a linear map.
        project: another one.
    """
    if num_heads == 1 and onednn.usable(tokens) and context.is_plain(to_query) and context.is_plain(project):
        return _one_head(tokens, to_query, key, value, project)
    query = linear.linear(tokens, to_query)
    context.release(tokens)
    return linear.linear(attend(query, key, value, num_heads), project)


def _one_head(tokens: Tensor, to_query: nn.Module, key: Tensor, value: Tensor, project: nn.Module) -> Tensor:
    """``project_and_attend`` of one head, with both linear maps done on the few keys instead.

    The rows of the softmax P sum to one, so project(P V) = P project(V). And q(x) . k = x . (Wq' k) + bq . k, whose
    last term is one number per key, which the mask adds.
    """
    scale = tokens.shape[-1] ** -0.5
    weight, bias = cast(Tensor, to_query.weight), cast("Tensor | None", to_query.bias)
    mask = None if bias is None else (key @ bias * scale)[:, None, None, :]
    query, key, value = (t.unsqueeze(1) for t in (tokens, key @ weight, project(value)))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale).squeeze(1)


# ---- with a bias


def attend_with_bias(qkv: Tensor, bias: Tensor, num_heads: int, sizes: Sequence[int] | None = None) -> Tensor:
    """softmax(q k' / sqrt(d) + bias) v of each window and head: (K, n, 3C) -> (K, n, C).

    Args:
        qkv: queries, keys and values of K windows of n tokens.
        bias: for each window, or one for all: (K or 1, h, n, n); with ``sizes``, one for each group of windows.
        sizes: of the groups that the windows are ordered in.
    """
    if sizes is None:
        heads = _heads_in_graphs if context.is_compiling_to_run() else head_maps.heads_of
        query, key, value = heads(qkv, num_heads)
        return joined(F.scaled_dot_product_attention(query, key, value, attn_mask=bias))
    cuda = context.device_type(qkv) == "cuda"
    if bias.requires_grad and torch.is_grad_enabled() and not cuda:
        return _BiasedAttention.apply(qkv, bias, sizes, num_heads)
    if cuda and len(sizes) > 2:
        sizes, masks = _in_two_groups(sizes, bias)
        return torch.cat([attend_with_bias(*group, num_heads) for group in zip(qkv.split(sizes), masks, strict=True)])
    groups = zip(qkv.split(list(sizes)), bias.split(1), strict=True)
    parts = [attend_with_bias(group, mask, num_heads) for group, mask in groups if len(group)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _heads_in_graphs(qkv: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    """``head_maps.heads_of``, split where they are rows of a matrix. PyTorch's compiler puts gaps between windows of 49
    rows, so that they begin at round addresses; the gradient of the other form is then copied to be a matrix."""
    parts = qkv.flatten(0, 1).chunk(3, dim=-1)
    return tuple(part.view(*qkv.shape[:2], num_heads, -1).transpose(1, 2) for part in parts)


def attend_by_distance(qkv: Tensor, rows: Tensor, columns: Tensor, num_heads: int) -> Tensor:
    """softmax(q k' / sqrt(d) + r) v of each head: (K, H * W, 3C) -> (K, H * W, C), where r is q . rows[y_q, y_k] +
    q . columns[x_q, x_k].

    r is a sum of one number for each row of the keys and one for each column, so it is a product, too: the queries get
    these H + W numbers as further channels, and each key has two ones there. So no N x N matrix is stored, except on
    CUDA where the channels are too many.

    Args:
        qkv: queries, keys and values of K grids.
        rows: (H, H, d), of the pairs of rows; see ``by_distance``.
        columns: (W, W, d), of the pairs of columns.
    """
    query, key, value = head_maps.heads_of(qkv, num_heads)
    return joined(attend_heads_by_distance(query, key, value, rows, columns))


def attend_heads_by_distance(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``attend_by_distance`` of heads, whose keys may be on another grid: (K, h, H * W, d) over (K, h, H' * W', d) ->
    (K, h, H * W, d).

    Args:
        rows: (H, H', d).
        columns: (W, W', d).
    """
    height, width = rows.shape[1], columns.shape[1]
    dim, dtype, direct = query.shape[-1], query.dtype, registration.is_direct(query)
    grid = query.unflatten(2, (rows.shape[0], columns.shape[0]))
    # A graph that serves all sizes must not ask for them.
    fused = direct or (context.device_type(query) == "cuda" and not context.is_exporting())
    if fused and dim + height + width > MOST_CHANNELS and _gains_by_mask(query, key):
        mask = _sums_of_lines(*of_lines(grid, rows.to(dtype), columns.to(dtype)))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    factor = dim**0.5  # the scale of attention is for q k' alone
    of_rows, of_columns = of_lines(grid, (rows * factor).to(dtype), (columns * factor).to(dtype))
    # CUDA's kernels take channels in eights: PyTorch would copy queries, keys and values to fill them up.
    spare = -(dim + height + width) % CHANNELS_AT_ONCE if direct else 0
    # It is kept where kernels are started directly: each operator that it is made of would take as long as a launch.
    ones = (_ones if direct else _ones_at_places)(height, width, spare, dtype, query.device)
    channels = [grid, of_rows, of_columns]
    if spare:
        channels.append(grid.detach()[..., :1].expand(*grid.shape[:4], spare))  # any values: those of the keys are zero
    query = torch.cat(channels, dim=-1).flatten(2, 3)
    key = torch.cat((key, ones.expand(*key.shape[:3], -1)), dim=-1)
    # The fused kernels take values of the width of the keys.
    out = F.scaled_dot_product_attention(query, key, F.pad(value, (0, ones.shape[-1])), scale=dim**-0.5)
    return out[..., :dim]


def _gains_by_mask(query: Tensor, key: Tensor) -> bool:
    """Whether attention with a mask, an N x N matrix in the type of the queries that gets a gradient, takes less time
    than with more channels than the fast kernels take, which compute in bf16 and fp16."""
    dtype = context.autocast_dtype(query.device) or query.dtype
    return dtype in (torch.bfloat16, torch.float16) and query.shape[:-1].numel() * key.shape[2] <= LARGEST_MASK


def _sums_of_lines(of_rows: Tensor, of_columns: Tensor) -> Tensor:
    """A mask (K, h, H * W, H' * W') of one number for each row of the keys (K, h, H, W, H'), and one for each column
    (K, h, H, W, W')."""
    # In order, as the order of the larger result follows from theirs.
    by_row, by_column = anysize.in_order(of_rows), anysize.in_order(of_columns)
    return (by_row.unsqueeze(-1) + by_column.unsqueeze(-2)).flatten(4).flatten(2, 3)


def _ones_at_places(height: int, width: int, spare: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A one at the row, and a one at the column, of each place of a grid, and zeros: (H * W, H + W + spare)."""
    if context.is_exporting():  # what repeats rows of a matrix is no operator of other runtimes
        rows, columns = (torch.arange(count, device=device) for count in (height, width))
        at_row = (rows[:, None, None] == rows).expand(height, width, height)
        at_column = (columns[None, :, None] == columns).expand(height, width, width)
        return torch.cat((at_row, at_column), dim=-1).flatten(0, 1).to(dtype)
    return torch.cat(
        (
            torch.eye(height, dtype=dtype, device=device).repeat_interleave(width, 0),
            torch.eye(width, dtype=dtype, device=device).repeat(height, 1),
            *([torch.zeros(height * width, spare, dtype=dtype, device=device)] if spare else []),
        ),
        dim=-1,
    )


def of_lines(grid: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The products of each query of a grid (K, h, H, W, d) with the vectors of its row and of its column:
    (K, h, H, W, H') and (K, h, H, W, W'). `torch.einsum` would take twice the operators."""
    by_row, by_column = grid.permute(2, 0, 1, 3, 4), grid.permute(3, 0, 1, 2, 4)
    if not context.is_exporting():
        of_rows = torch.bmm(by_row.flatten(1, 3), rows.mT).view(*by_row.shape[:4], rows.shape[1])
        of_columns = torch.bmm(by_column.flatten(1, 3), columns.mT).view(*by_column.shape[:4], columns.shape[1])
        return of_rows.permute(1, 2, 0, 3, 4), of_columns.permute(1, 2, 3, 0, 4)
    by_row, by_column = anysize.in_order(by_row), anysize.in_order(by_column)
    of_rows = torch.bmm(by_row.flatten(1, 3), anysize.in_order(rows.mT)).unflatten(1, by_row.shape[1:4])
    of_columns = torch.bmm(by_column.flatten(1, 3), anysize.in_order(columns.mT)).unflatten(1, by_column.shape[1:4])
    return anysize.in_order(of_rows.permute(1, 2, 0, 3, 4)), anysize.in_order(of_columns.permute(1, 2, 3, 0, 4))


def by_distance(table: Tensor, side: int, key_side: int | None = None) -> Tensor:
    """The entry of each pair of places on a line, by their distance: (2s - 1, d) -> (side, key_side, d). A table for
    another side is resized linearly. Keys on a line of other steps (MViTv2) have their distance in the smaller steps.
    """
    key_side = side if key_side is None else key_side
    if registration.is_direct(table):
        return _by_shares(table, side, key_side)
    if not context.is_eager():
        if context.is_exporting():
            return _by_distance_in_export(table, side, key_side)
        if context.is_compiling_to_run():
            return distances(table, side, key_side)
    return _resized(table, side, key_side)[_places_by_distance(side, key_side, table.device)]


def _by_shares(table: Tensor, side: int, key_side: int) -> Tensor:
    """``by_distance``, which is linear, by a product with a matrix that is kept: one kernel, and one for the gradient,
    where the gradient of an index sorts the places first."""
    shares = _shares(side, key_side, len(table), table.dtype, table.device)
    with context.autocast_to(table.device, None):
        return torch.mm(shares, table).view(side, key_side, -1)


def _shares_of_entries(side: int, key_side: int, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What ``by_distance`` makes of a table of ``count`` entries: (side * key_side, count)."""
    return _distances(torch.eye(count, dtype=dtype, device=device), side, key_side).flatten(0, 1)


def _resized(table: Tensor, side: int, key_side: int) -> Tensor:
    count = 2 * max(side, key_side) - 1
    if len(table) == count:
        return table
    if context.is_to_repeat(table):
        with context.autocast_to(table.device, None):
            return resize.shares_of_places(len(table), count, table) @ table
    return F.interpolate(table.t().unsqueeze(0), size=count, mode="linear")[0].t()


def _places_by_distance(side: int, key_side: int, device: torch.device) -> Tensor:
    """The row of a table of this size for each pair: (side, key_side)."""
    places, keys = (torch.arange(n, device=device) for n in (side, key_side))
    if side == key_side:
        return places[:, None] - keys + side - 1
    step, key_step = max(key_side / side, 1.0), max(side / key_side, 1.0)
    return (places[:, None] * step - keys * key_step + (key_side - 1) * key_step).long()


# Of the largest grids of detection a matrix takes 12 MiB, so few are kept.
_ones, _shares = Kept(_ones_at_places, count=16), Kept(_shares_of_entries, count=16)


def _distances(table: Tensor, side: int, key_side: int) -> Tensor:
    """``by_distance``, as an operator of compiled graphs. They would otherwise hold a graph for each relation of the
    sides, and code for the interpolation and its gradient."""
    return _resized(table, side, key_side)[_places_by_distance(side, key_side, table.device)].contiguous()


def _distances_backward(grad: Tensor, count: int) -> Tensor:
    side, key_side, dim = grad.shape
    size = 2 * max(side, key_side) - 1
    of_table = grad.new_zeros(size, dim)
    of_table.index_put_((_places_by_distance(side, key_side, grad.device),), grad, accumulate=True)
    if size == count:
        return of_table
    if context.is_to_repeat(grad):
        return resize.shares_of_places(count, size, grad).t() @ of_table
    of_line = of_table.t().unsqueeze(0).contiguous()
    return torch.ops.aten.upsample_linear1d_backward(of_line, [size], [1, dim, count], False)[0].t().contiguous()


distances = registration.operator(
    "distances(Tensor table, SymInt side, SymInt key_side) -> Tensor", _distances, _distances
)
distances_backward = registration.operator(
    "distances_backward(Tensor grad, SymInt count) -> Tensor", _distances_backward, _distances_backward
)


def _keep_count(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.count = inputs[0].shape[0]


registration.in_graphs(
    "distances",
    lambda table, side, key_side: table.new_empty(side, key_side, table.shape[1]),
    lambda ctx, grad: (distances_backward(grad, ctx.count), None, None),
    _keep_count,
)
registration.in_graphs("distances_backward", lambda grad, count: grad.new_empty(count, grad.shape[2]))


def _by_distance_in_export(table: Tensor, side: int, key_side: int) -> Tensor:
    """``by_distance`` in a graph that serves every size: all that follows from sizes is computed in tensors."""
    places, keys = (torch.arange(n, device=table.device) for n in (side, key_side))
    if anysize.same_size((side,), (key_side,)):
        largest = side
        rows = places[:, None] - keys + side - 1
    else:
        largest = torch.sym_max(side, key_side)
        line = torch.ones((), dtype=torch.float64, device=table.device)
        step, key_step = ((line * a / b).clamp(min=1.0) for a, b in ((key_side, side), (side, key_side)))
        first = ((key_side - 1) * key_step).float()
        rows = (places[:, None] * step.float() - keys * key_step.float() + first).long()
    if not anysize.same_size((len(table),), (2 * largest - 1,)):
        table = resize.shares_of_places(len(table), 2 * largest - 1, table) @ table
    return table[rows]


def _in_two_groups(sizes: Sequence[int], bias: Tensor) -> tuple[list[int], list[Tensor]]:
    """The first group, and all others, which are small, as one, with a bias for each window of it: on a GPU few calls
    cost more than the memory of these biases. A group without windows is left out."""
    places = bias.shape[-1]
    wide = F.pad(bias[1:], (0, -places % ALIGNED))
    parts = zip(wide.split(1), sizes[1:], strict=True)
    with context.autocast_to(bias.device, None):  # which joins no bf16 where it is to fp16
        others = torch.cat([mask.expand(size, -1, -1, -1) for mask, size in parts])[..., :places]
    groups = zip((sizes[0], len(others)), (bias[:1], others), strict=True)
    kept = [(size, mask) for size, mask in groups if size]
    return [size for size, _ in kept], [mask for _, mask in kept]


class _BiasedAttention(torch.autograd.Function):
    """``attend_with_bias`` of all groups, with a gradient of their biases, on CPU.

    PyTorch's fused kernel for CPUs gives none, and its replacement is slower than the six products here.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor, sizes: list[int], num_heads: int) -> Tensor:
        with torch.autocast(qkv.device.type, enabled=False):
            heads = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).contiguous().flatten(1, 2)
            query, key, value = heads
            query *= query.shape[-1] ** -0.5
            scores = (query @ key.mT).to(bias.dtype).unflatten(0, (-1, num_heads))
            for group, mask in zip(scores.split(sizes), bias, strict=True):
                group += mask
            weights = scores.softmax(-1).flatten(0, 1).to(value.dtype)
            ctx.save_for_backward(heads, weights)
            ctx.sizes, ctx.num_heads, ctx.bias_dtype = sizes, num_heads, bias.dtype
            return (weights @ value).unflatten(0, (-1, num_heads)).transpose(1, 2).flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        heads, weights = ctx.saved_tensors
        query, key, value = heads
        grad = grad.unflatten(-1, (ctx.num_heads, -1)).transpose(1, 2).flatten(0, 1)
        of_heads = torch.empty_like(heads)
        torch.bmm(weights.mT, grad, out=of_heads[2])
        of_scores = torch._softmax_backward_data(grad @ value.mT, weights, -1, weights.dtype)
        groups = of_scores.unflatten(0, (-1, ctx.num_heads)).split(ctx.sizes)
        of_bias = torch.stack([group.sum(0, dtype=ctx.bias_dtype) for group in groups])
        torch.bmm(of_scores, key, out=of_heads[0]).mul_(query.shape[-1] ** -0.5)
        torch.bmm(of_scores.mT, query, out=of_heads[1])
        of_qkv = of_heads.unflatten(1, (-1, ctx.num_heads)).permute(1, 3, 0, 2, 4).flatten(2)
        return of_qkv, of_bias, None, None
