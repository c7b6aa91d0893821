"""Softmax attention of tokens, and its algebra.

B batch, N query tokens, M key tokens, C channels, h heads, d = C / h channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.ops import context, linear, onednn
from mm_vitbackbones.ops.once import once_differentiable


def attend(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """softmax(q k' / sqrt(d)) v of each head: tokens (B, N, C) over tokens (B, M, C) -> (B, N, C). No N x M matrix is
    stored."""
    q, k, v = (tokens.unflatten(-1, (num_heads, -1)).transpose(1, 2) for tokens in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


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
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2).flatten(2)
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
    height, width = len(rows), len(columns)
    query, key, value = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    dim, dtype = query.shape[-1], query.dtype
    grid = query.unflatten(2, (height, width))
    of_rows = torch.einsum("khyxd,yzd->khyxz", grid, rows.to(dtype)).flatten(2, 3)
    of_columns = torch.einsum("khyxd,xzd->khyxz", grid, columns.to(dtype)).flatten(2, 3)
    terms = torch.cat((of_rows, of_columns), dim=-1) * dim**0.5  # the scale is for q k' alone
    ones = torch.cat(
        (
            torch.eye(height, dtype=dtype, device=qkv.device).repeat_interleave(width, 0),
            torch.eye(width, dtype=dtype, device=qkv.device).repeat(height, 1),
        ),
        dim=-1,
    )
    query = torch.cat((query, terms), dim=-1)
    key = torch.cat((key, ones.expand(*key.shape[:3], -1)), dim=-1)
    # The fused kernels take values of the width of the keys.
    out = F.scaled_dot_product_attention(query, key, F.pad(value, (0, height + width)), scale=dim**-0.5)
    return out[..., :dim].transpose(1, 2).flatten(2)


def by_distance(table: Tensor, side: int) -> Tensor:
    """The entry of each pair of places on a line, by their distance: (2s - 1, d) -> (side, side, d). A table for
    another side is resized linearly."""
    count = 2 * side - 1
    if len(table) != count:
        table = F.interpolate(table.t().unsqueeze(0), size=count, mode="linear")[0].t()
    places = torch.arange(side, device=table.device)
    return table[places[:, None] - places + side - 1]


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
