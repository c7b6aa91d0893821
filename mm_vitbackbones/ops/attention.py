"""Softmax attention of tokens, and its algebra.

B batch, N query tokens, M key tokens, C channels, h heads, d = C / h channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.ops import anysize, context, linear, narrow, onednn, resize, rotary
from mm_vitbackbones.ops import reduced as reduced_heads
from mm_vitbackbones.ops.kernels import registration
from mm_vitbackbones.ops.once import direct, once_differentiable, typed


def attend(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """softmax(q k' / sqrt(d)) v of each head: tokens (B, N, C) over tokens (B, M, C) -> (B, N, C). No N x M matrix is
    stored."""
    q, k, v = (tokens.unflatten(-1, (num_heads, -1)).transpose(1, 2) for tokens in (query, key, value))
    return _joined(F.scaled_dot_product_attention(q, k, v))


def _joined(heads: Tensor) -> Tensor:
    """(B, h, N, d) -> (B, N, C)."""
    return anysize.in_order(heads.transpose(1, 2)).flatten(2)


def attend_to_each_other(
    tokens: Tensor, to_qkv: nn.Module, project: nn.Module, num_heads: int, again: bool = False
) -> Tensor:
    """``project(attend(q, k, v))`` of queries, keys and values of the same tokens: (B, N, C) -> (B, N, C).

    Args:
        to_qkv: a linear map, C -> 3C.
        project: another one, C -> C.
        again: whether training on a CPU computes queries, keys and values again.
    """
    shape = tokens.shape
    if (heads := linear.to_heads(tokens, to_qkv, 3, num_heads)) is not None:
        query, key, value = heads
        return _projected(F.scaled_dot_product_attention(query, key, value), project, shape[:-1])
    query, key, value = linear.linear(tokens, to_qkv, again).chunk(3, dim=-1)
    context.release(tokens)
    return linear.linear(attend(query, key, value, num_heads), project)


def attend_turned(
    tokens: Tensor,
    to_query: nn.Module,
    to_key: nn.Module,
    to_value: nn.Module,
    project: nn.Module,
    rotation: rotary.Rotation,
    num_heads: int,
) -> Tensor:
    """``attend_to_each_other`` with queries and keys that are turned by their position: (B, N, C) -> (B, N, C)."""
    layers = to_query, to_key, to_value
    if (heads := rotary.to_heads(tokens, layers, rotation, num_heads)) is not None:
        query, key, value = heads
        return _projected(F.scaled_dot_product_attention(query, key, value), project, tokens.shape[:-1])
    query, key, value = (linear.linear(tokens, layer) for layer in layers)
    context.release(tokens)
    query, key = (rotary.rotate(x, rotation, num_heads) for x in (query, key))
    return linear.linear(attend(query, key, value, num_heads), project)


def _projected(heads: Tensor, project: nn.Module, shape: Sequence[int]) -> Tensor:
    """A linear map of all heads together, in training on CUDA: (B, h, N, d) -> (*shape, C)."""
    out = linear.of_heads(heads, project, shape)
    return linear.by(_joined(heads), project).view(*shape, -1) if out is None else out


def attend_to_reduced(
    grid: Tensor,
    to_query: nn.Module,
    reduction: nn.Module,
    parts: reduced_heads.Reduction | None,
    to_key_value: nn.Module,
    project: nn.Module,
    num_heads: int,
) -> Tensor:
    """``project(attend(q, k, v))`` of queries of a grid and keys and values of its reduction:
    (B, H, W, C) -> (B, H, W, C).

    Args:
        to_query: a linear map, C -> C.
        reduction: maps a grid to the grid of the keys.
        parts: of the reduction, if it is a plain module that has them and nothing else.
        to_key_value: a linear map, C -> 2C.
        project: another one, C -> C.
    """
    heads = None if parts is None else reduced_heads.heads(grid, to_query, parts, to_key_value, num_heads)
    if heads is None:
        reduced = reduction(grid)
        of_reduced = linear.to_heads(reduced, to_key_value, 2, num_heads)
        of_grid = None if of_reduced is None else linear.to_heads(grid, to_query, 1, num_heads)
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
    weight, bias = cast(Tensor, to_query.weight), cast(Tensor, to_query.bias)
    mask = (key @ bias * scale)[:, None, None, :]
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
        query, key, value = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
        return _joined(F.scaled_dot_product_attention(query, key, value, attn_mask=bias))
    cuda = context.device_type(qkv) == "cuda"
    if bias.requires_grad and torch.is_grad_enabled() and not cuda:
        return _BiasedAttention.apply(qkv, bias, sizes, num_heads)
    if cuda and len(sizes) > 2:
        sizes, masks = _in_two_groups(sizes, bias)
        return torch.cat([attend_with_bias(*group, num_heads) for group in zip(qkv.split(sizes), masks, strict=True)])
    groups = zip(qkv.split(list(sizes)), bias.split(1), strict=True)
    parts = [attend_with_bias(group, mask, num_heads) for group, mask in groups if len(group)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def attend_by_distance(qkv: Tensor, rows: Tensor, columns: Tensor, num_heads: int) -> Tensor:
    """softmax(q k' / sqrt(d) + r) v of each head: (K, H * W, 3C) -> (K, H * W, C), where r is q . rows[y_q, y_k] +
    q . columns[x_q, x_k].

    r is a sum of one number for each row of the keys and one for each column, so it is a product, too: the queries get
    these H + W numbers as further channels, and each key has two ones there. So no N x N matrix is stored.

    Args:
        qkv: queries, keys and values of K grids.
        rows: (H, H, d), of the pairs of rows; see ``by_distance``.
        columns: (W, W, d), of the pairs of columns.
    """
    query, key, value = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    return _joined(attend_heads_by_distance(query, key, value, rows, columns))


def attend_heads_by_distance(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``attend_by_distance`` of heads, whose keys may be on another grid: (K, h, H * W, d) over (K, h, H' * W', d) ->
    (K, h, H * W, d).

    Args:
        rows: (H, H', d).
        columns: (W, W', d).
    """
    height, width = rows.shape[1], columns.shape[1]
    dim, dtype = query.shape[-1], query.dtype
    grid = query.unflatten(2, (rows.shape[0], columns.shape[0]))
    of_rows, of_columns = of_lines(grid, rows.to(dtype), columns.to(dtype))
    terms = torch.cat((of_rows, of_columns), dim=-1).flatten(2, 3) * dim**0.5  # the scale is for q k' alone
    ones = _ones_at_places(height, width, query)
    query = torch.cat((query, terms), dim=-1)
    key = torch.cat((key, ones.expand(*key.shape[:3], -1)), dim=-1)
    # The fused kernels take values of the width of the keys.
    out = F.scaled_dot_product_attention(query, key, F.pad(value, (0, height + width)), scale=dim**-0.5)
    return out[..., :dim]


def _ones_at_places(height: int, width: int, like: Tensor) -> Tensor:
    """A one at the row, and a one at the column, of each place of a grid: (H * W, H + W)."""
    if context.is_exporting():  # what repeats rows of a matrix is no operator of other runtimes
        rows, columns = (torch.arange(count, device=like.device) for count in (height, width))
        at_row = (rows[:, None, None] == rows).expand(height, width, height)
        at_column = (columns[None, :, None] == columns).expand(height, width, width)
        return torch.cat((at_row, at_column), dim=-1).flatten(0, 1).to(like.dtype)
    return torch.cat(
        (
            torch.eye(height, dtype=like.dtype, device=like.device).repeat_interleave(width, 0),
            torch.eye(width, dtype=like.dtype, device=like.device).repeat(height, 1),
        ),
        dim=-1,
    )


def of_lines(grid: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The products of each query of a grid (K, h, H, W, d) with the vectors of its row and of its column:
    (K, h, H, W, H') and (K, h, H, W, W')."""
    if not context.is_exporting():
        return torch.einsum("khyxd,yzd->khyxz", grid, rows), torch.einsum("khyxd,xzd->khyxz", grid, columns)
    by_row, by_column = (anysize.in_order(grid.permute(order)) for order in ((2, 0, 1, 3, 4), (3, 0, 1, 2, 4)))
    of_rows = torch.bmm(by_row.flatten(1, 3), anysize.in_order(rows.mT)).unflatten(1, by_row.shape[1:4])
    of_columns = torch.bmm(by_column.flatten(1, 3), anysize.in_order(columns.mT)).unflatten(1, by_column.shape[1:4])
    return anysize.in_order(of_rows.permute(1, 2, 0, 3, 4)), anysize.in_order(of_columns.permute(1, 2, 3, 0, 4))


def by_distance(table: Tensor, side: int, key_side: int | None = None) -> Tensor:
    """The entry of each pair of places on a line, by their distance: (2s - 1, d) -> (side, key_side, d). A table for
    another side is resized linearly. Keys on a line of other steps (MViTv2) have their distance in the smaller steps.
    """
    key_side = side if key_side is None else key_side
    if context.is_exporting():
        return _by_distance_in_export(table, side, key_side)
    if context.is_compiling_to_run():
        return distances(table, side, key_side)
    return _resized(table, side, key_side)[_places_by_distance(side, key_side, table.device)]


def _resized(table: Tensor, side: int, key_side: int) -> Tensor:
    count = 2 * max(side, key_side) - 1
    return table if len(table) == count else F.interpolate(table.t().unsqueeze(0), size=count, mode="linear")[0].t()


def _places_by_distance(side: int, key_side: int, device: torch.device) -> Tensor:
    """The row of a table of this size for each pair: (side, key_side)."""
    places, keys = (torch.arange(n, device=device) for n in (side, key_side))
    if side == key_side:
        return places[:, None] - keys + side - 1
    step, key_step = max(key_side / side, 1.0), max(side / key_side, 1.0)
    return (places[:, None] * step - keys * key_step + (key_side - 1) * key_step).long()


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
    # Rows of a multiple of 8 elements, which CUDA's kernels want; see `windows`.
    places = bias.shape[-1]
    wide = F.pad(bias[1:], (0, -places % 8))
    parts = zip(wide.split(1), sizes[1:], strict=True)
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


# ---- with heads that are mixed

BAND_BYTES, CUDA_BAND_BYTES = 2**20, 64 * 2**20
"""The size of one tensor (h, n, N) of a band of n queries: on a CPU it fits into the caches, on CUDA there are few
launches."""
FEWEST_QUERIES = 32
"""Of a band, whose products would otherwise take a third longer."""


def attend_with_mixed_heads(qkv: Tensor, before: nn.Module, after: nn.Module, num_heads: int) -> Tensor:
    """Attention whose heads are mixed before the softmax and after it: (B, ..., 3C) -> (B, ..., C).

        scores  S_h = q_h k_h' / sqrt(d)
        shares  P_h = softmax(sum over g of before[h, g] S_g)
        result  (sum over g of after[h, g] P_g + bias_h) v_h

    This takes the scores of all heads at once, so none of PyTorch's kernels serves, and the reference keeps several
    tensors (B, h, N, N). But a row of them is of one query. So some queries of an image are computed at a time, and the
    backward pass computes each such band again: what is held grows with the band, and not with the square of N.

    Two terms are cheap. The bias of ``before`` adds one number to all keys of a head: the softmax does not see it, and
    its gradient is zero. That of ``after`` adds itself times the sum of the head's values.

    Args:
        qkv: queries, keys and values.
        before: a linear map of the heads, h -> h.
        after: another one.
    """
    if not _mixes_in_bands(qkv, before, after):
        return _as_grid(_mixed_reference(qkv.flatten(1, -2), before, after, num_heads), qkv)
    of_before, of_after = before._parameters, after._parameters
    unseen, *weights = cast(
        "list[Tensor]", [of_before["bias"], of_before["weight"], of_after["weight"], of_after["bias"]]
    )
    if not context.is_eager():
        weights[0] = weights[0] + 0 * unseen  # which gives the unseen bias a gradient, zeros
    elif torch.is_grad_enabled() and any(x.requires_grad for x in (qkv, unseen, *weights)):
        return _mixed(qkv, unseen, *weights, num_heads)
    return _as_grid(mixed_heads(qkv.flatten(1, -2), *weights, num_heads), qkv)


def _as_grid(tokens: Tensor, like: Tensor) -> Tensor:
    """Tokens (B, N, C) -> (B, ..., C), as those of another tensor."""
    return tokens if like.dim() == 3 else tokens.unflatten(1, like.shape[1:-1])


def _mixed_reference(qkv: Tensor, before: nn.Module, after: nn.Module, num_heads: int) -> Tensor:
    query, key, value = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    scores = (query * query.shape[-1] ** -0.5) @ key.mT
    shares = before(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(-1)
    mixed = after(shares.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return _joined(mixed @ value)


def _mixes_in_bands(qkv: Tensor, before: nn.Module, after: nn.Module) -> bool:
    """Whether bands take the place of the reference: not on tensors without data, and not in a graph that leaves this
    process. ``torch.compile`` would keep several matrices of N x N, so its graphs hold the operator."""
    if context.is_compiling_to_run():
        if not registration.CAN_REGISTER_GRADIENTS:
            return False
    elif not context.is_eager() or type(qkv) is not Tensor or qkv.is_meta:
        return False
    plain = context.is_plain(before) and context.is_plain(after)
    return plain and before._parameters["bias"] is not None and after._parameters["bias"] is not None


class _Bands:
    """How the scores of images are cut into bands: as many queries of an image as fit, or several small images. All
    bands write into the same memory: pages of new tensors would take as long as the products.

    Args:
        count: buffers (b * h, n, N), for n queries of each of b images.
    """

    def __init__(self, qkv: Tensor, num_heads: int, count: int) -> None:
        self.qkv, self.num_heads, self.count, self.tokens = qkv, num_heads, count, qkv.shape[1]
        self.queries, self.images = _size_of_band(qkv, num_heads)
        self.memory = qkv.new_empty(count, self.images * num_heads * self.queries * self.tokens)

    def groups(self) -> Iterator[slice]:
        """The images that are computed at a time."""
        return (slice(first, first + self.images) for first in range(0, len(self.qkv), self.images))

    def of(self, heads: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
        """The queries of each band, and its buffers, of some images' queries (b * h, N, d)."""
        for first in range(0, self.tokens, self.queries):
            last = min(first + self.queries, self.tokens)
            shape = len(heads), last - first, self.tokens
            yield slice(first, last), list(self.memory[:, : math.prod(shape)].view(self.count, *shape))


def _size_of_band(qkv: Tensor, num_heads: int) -> tuple[int, int]:
    """The most queries of an image, and images, of a band."""
    budget = CUDA_BAND_BYTES if context.device_type(qkv) == "cuda" else BAND_BYTES
    images, tokens, _ = qkv.shape
    of_query = num_heads * tokens * qkv.element_size()
    return min(tokens, max(FEWEST_QUERIES, budget // of_query)), min(images, max(1, budget // (of_query * tokens)))


def _is_one_band(qkv: Tensor, num_heads: int) -> bool:
    """Whether all scores are one band: no buffers are needed, nothing is added up, and no pass begins with zeros."""
    images, tokens, _ = qkv.shape
    return _size_of_band(qkv, num_heads) == (tokens, images)


def _heads_of(qkv: Tensor, num_heads: int) -> Tensor:
    """Scaled queries, keys and values of b images: (b, N, 3C) -> (3, b * h, N, d)."""
    images, tokens, width = qkv.shape
    dim = width // (3 * num_heads)
    parts = qkv.reshape(images, tokens, 3, num_heads, dim).permute(2, 0, 3, 1, 4)
    parts = parts.clone(memory_format=torch.contiguous_format).view(3, -1, tokens, dim)  # also where it has this order
    parts[0].mul_(dim**-0.5)
    return parts


def _mix(weight: Tensor, heads: Tensor, out: Tensor | None = None) -> Tensor:
    """(b * h, n, N) -> (b * h, n, N), by a weight (h, h)."""
    weights = weight.expand(len(heads) // len(weight), -1, -1)
    if out is None:
        return torch.bmm(weights, _flat(heads, weight)).view(heads.shape)
    torch.bmm(weights, _flat(heads, weight), out=_flat(out, weight))
    return out


def _flat(heads: Tensor, weight: Tensor) -> Tensor:
    """(b * h, n, N) -> (b, h, n * N), a view."""
    return heads.view(-1, len(weight), heads.shape[1] * heads.shape[2])


def _of_weight(grad: Tensor, heads: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the weight of ``_mix``."""
    products = torch.bmm(_flat(grad, weight), _flat(heads, weight).mT)
    return products.sum(0, dtype=torch.promote_types(grad.dtype, torch.float32))


def _mixed_heads(qkv: Tensor, before: Tensor, after: Tensor, bias: Tensor, num_heads: int) -> Tensor:
    """``attend_with_mixed_heads`` in bands, in the type of ``qkv``."""
    with context.autocast_to(qkv.device, None):
        before, after, bias = (typed(x, qkv.dtype) for x in (before, after, bias))
        mixed = _mixed_in_one_band if _is_one_band(qkv, num_heads) else _mixed_in_bands
        return mixed(qkv, before, after, bias, num_heads)


def _mixed_in_one_band(qkv: Tensor, before: Tensor, after: Tensor, bias: Tensor, num_heads: int) -> Tensor:
    images, tokens, width = qkv.shape
    query, key, value = _heads_of(qkv, num_heads)
    by_image = images, num_heads, tokens, -1
    constant = value.view(by_image).sum(2, keepdim=True) * bias.view(-1, 1, 1)
    shares = torch.softmax(_mix(before, torch.bmm(query, key.mT)), -1)
    result = torch.bmm(_mix(after, shares), value)
    out = qkv.new_empty(images, tokens, width // 3)
    torch.add(result.view(by_image), constant, out=out.view(images, tokens, num_heads, -1).transpose(1, 2))
    return out


def _mixed_in_bands(qkv: Tensor, before: Tensor, after: Tensor, bias: Tensor, num_heads: int) -> Tensor:
    out = qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)
    bands = _Bands(qkv, num_heads, 2)
    for group in bands.groups():
        query, key, value = _heads_of(qkv[group], num_heads)
        constant = bias.repeat(len(value) // num_heads)[:, None, None] * value.sum(1, keepdim=True)
        of_heads = out[group].unflatten(-1, (num_heads, -1)).transpose(1, 2)
        for band, (a, b) in bands.of(query):
            torch.bmm(query[:, band], key.mT, out=a)
            shares = torch.softmax(_mix(before, a, out=b), -1, out=a)
            result = torch.baddbmm(constant, _mix(after, shares, out=b), value)
            of_heads[:, :, band] = result.unflatten(0, (-1, num_heads))
    return out


def _mixed_heads_backward(
    grad: Tensor, qkv: Tensor, before: Tensor, after: Tensor, bias: Tensor, num_heads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of all arguments of ``_mixed_heads``."""
    of_qkv, *sums = _mixed_gradients(grad, qkv, before, after, bias, num_heads)
    of_before, of_after, of_bias = (typed(x, like.dtype) for x, like in zip(sums, (before, after, bias), strict=True))
    return of_qkv, of_before, of_after, of_bias


def _mixed_gradients(
    grad: Tensor, qkv: Tensor, before: Tensor, after: Tensor, bias: Tensor, num_heads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``_mixed_heads_backward``, whose sums are in fp32 at least."""
    with context.autocast_to(qkv.device, None):
        before, after, bias, grad = (typed(x, qkv.dtype) for x in (before, after, bias, grad))
        gradients = _gradients_in_one_band if _is_one_band(qkv, num_heads) else _gradients_in_bands
        return gradients(grad, qkv, before, after, bias, num_heads)


def _gradients_in_one_band(
    grad: Tensor, qkv: Tensor, before: Tensor, after: Tensor, bias: Tensor, num_heads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = torch.promote_types(qkv.dtype, torch.float32)
    images, tokens, _ = qkv.shape
    query, key, value = _heads_of(qkv, num_heads)
    of_out = grad.reshape(images, tokens, num_heads, -1).transpose(1, 2).reshape(query.shape)
    by_image = images, num_heads, tokens, -1
    column, of_values = (x.view(by_image).sum(2, keepdim=True, dtype=wide) for x in (of_out, value))
    of_bias = (column * of_values).sum((0, 2, 3))
    scores = torch.bmm(query, key.mT)
    shares = torch.softmax(_mix(before, scores), -1)
    of_value = torch.bmm(_mix(after, shares).mT, of_out)
    of_mixed = torch.bmm(of_out, value.mT)
    of_after = _of_weight(of_mixed, shares, after)
    of_mixed = _mix(after.t(), of_mixed)
    of_logits = torch._softmax_backward_data(of_mixed, shares, -1, shares.dtype)
    del shares, of_mixed
    of_before = _of_weight(of_logits, scores, before)
    del scores
    of_scores = _mix(before.t(), of_logits)
    of_query, of_key = torch.bmm(of_scores, key), torch.bmm(of_scores.mT, query)
    of_qkv = qkv.new_empty(qkv.shape)
    parts = of_qkv.view(images, tokens, 3, num_heads, -1).permute(2, 0, 3, 1, 4).unbind()
    torch.mul(of_query.view(by_image), query.shape[-1] ** -0.5, out=parts[0])
    parts[1].copy_(of_key.view(by_image))
    torch.add(of_value.view(by_image), column * bias.view(-1, 1, 1), out=parts[2])
    return of_qkv, of_before, of_after, of_bias


def _gradients_in_bands(
    grad: Tensor, qkv: Tensor, before: Tensor, after: Tensor, bias: Tensor, num_heads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = torch.promote_types(qkv.dtype, torch.float32)
    of_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    of_before, of_after, of_bias = (torch.zeros_like(x, dtype=wide) for x in (before, after, bias))
    bands = _Bands(qkv, num_heads, 4)
    for group in bands.groups():
        query, key, value = heads = _heads_of(qkv[group], num_heads)
        of_out = grad[group].unflatten(-1, (num_heads, -1)).transpose(1, 2).contiguous().flatten(0, 1)
        column = of_out.sum(1, keepdim=True, dtype=wide)
        of_bias += (column * value.sum(1, keepdim=True, dtype=wide)).sum((1, 2)).view(-1, num_heads).sum(0)
        of_query, of_key, of_value = torch.zeros_like(heads, dtype=wide)
        of_value += bias.repeat(len(value) // num_heads)[:, None, None] * column
        for band, (a, b, c, d) in bands.of(query):
            scores = torch.bmm(query[:, band], key.mT, out=a)
            shares = torch.softmax(_mix(before, scores, out=b), -1, out=c)
            of_value += _mix(after, shares, out=b).mT @ of_out[:, band]
            of_mixed = torch.bmm(of_out[:, band], value.mT, out=b)
            of_after += _of_weight(of_mixed, shares, after)
            of_shares = _mix(after.t(), of_mixed, out=d)
            of_logits = torch._softmax_backward_data(of_shares, shares, -1, shares.dtype, grad_input=b)
            of_before += _of_weight(of_logits, scores, before)
            of_scores = _mix(before.t(), of_logits, out=a)
            of_query[:, band] = of_scores @ key
            of_key += of_scores.mT @ query[:, band]
        of_query *= query.shape[-1] ** -0.5
        parts = of_qkv[group].unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
        for part, gradient in zip(parts, (of_query, of_key, of_value), strict=True):
            part.copy_(gradient.view_as(part))
    return of_qkv, of_before, of_after, of_bias


_TENSORS = "Tensor qkv, Tensor before, Tensor after, Tensor bias, int num_heads"
mixed_heads = registration.operator(f"mixed_heads({_TENSORS}) -> Tensor", _mixed_heads, _mixed_heads)
mixed_heads_backward = registration.operator(
    f"mixed_heads_backward(Tensor grad, {_TENSORS}) -> (Tensor, Tensor, Tensor, Tensor)",
    _mixed_heads_backward,
    _mixed_heads_backward,
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.num_heads = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, grad: Tensor) -> Any:
    return *mixed_heads_backward(grad, *ctx.saved_tensors, ctx.num_heads), None


registration.in_graphs(
    "mixed_heads", lambda qkv, *_: qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3), _gradients, _keep
)
registration.in_graphs(
    "mixed_heads_backward",
    lambda grad, qkv, *weights: tuple(x.new_empty(x.shape) for x in (qkv, *weights[:3])),
)


class _MixedHeads(torch.autograd.Function):
    """``mixed_heads``, which keeps its arguments alone."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, unseen: Tensor, before: Tensor, after: Tensor, bias: Tensor, num_heads: int
    ) -> Tensor:
        ctx.dtypes, ctx.num_heads = [x.dtype for x in (before, after, bias)], num_heads
        weights = [narrow.of(x, qkv.dtype) for x in (before, after, bias)]
        tokens = qkv.flatten(1, -2)
        ctx.save_for_backward(tokens, unseen, *weights)
        ctx.shape = qkv.shape
        return mixed_heads(tokens, *weights, num_heads).view(*qkv.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        qkv, unseen, before, after, bias = ctx.saved_tensors
        of_qkv, *sums = _mixed_gradients(grad.flatten(1, -2), qkv, before, after, bias, ctx.num_heads)
        of_weights = [typed(x, dtype) for x, dtype in zip(sums, ctx.dtypes, strict=True)]
        return of_qkv.view(ctx.shape), torch.zeros_like(unseen), *of_weights, None


_mixed = direct(_MixedHeads)
