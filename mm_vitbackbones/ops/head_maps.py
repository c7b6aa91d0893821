"""Linear maps to the heads of attention and back, whose results are views of one map. In training on CUDA; see
``ops.linear``. ``by_head`` and ``heads_of`` are for all devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mm_vitbackbones.ops import linear
from mm_vitbackbones.ops.chained import Forked, Pending, finished, then
from mm_vitbackbones.ops.once import once_differentiable


def to_heads(x: Tensor, layer: nn.Module, count: int, num_heads: int) -> tuple[Tensor, ...] | None:
    """``layer(x)`` of tokens, split into ``count`` maps and these into heads: (B, ..., C) -> each (B, h, N, d), where N
    are all tokens of an entry. None where this is not the form: elsewhere than in eager mode on CUDA, and without a
    bias."""
    if (found := linear.on_cuda(x, layer)) is None or found[1] is None:
        return None
    weight, bias, dtype = found
    return to_heads_by(x, weight, bias, dtype, count, num_heads)


def to_heads_by(
    x: Tensor | Forked, weight: Tensor, bias: Tensor, dtype: torch.dtype, count: int, num_heads: int
) -> tuple[Tensor, ...]:
    """``to_heads`` by the parameters of a layer that is ``on_cuda``."""
    if torch.is_grad_enabled():
        return then(x, ToHeads, weight, bias, dtype, count, num_heads)
    x = finished(x)
    return split_heads(linear.mapped(x.reshape(-1, x.shape[-1]), weight, bias, dtype), x.shape[0], count, num_heads)


def of_heads(heads: Tensor, layer: nn.Module, shape: Sequence[int]) -> Tensor | None:
    """``layer`` of the channels of all heads together: (B, h, N, d) -> (*shape, C'). None as for ``to_heads``."""
    if (found := linear.on_cuda(heads, layer)) is None or found[1] is None:
        return None
    weight, bias, dtype = found
    return finished(of_heads_by(heads, weight, bias, dtype, shape))


def of_heads_by(
    heads: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype, shape: Sequence[int]
) -> Tensor | Pending:
    """``of_heads`` by the parameters of a layer that is ``on_cuda``; in training, the call that gives it."""
    if torch.is_grad_enabled():
        return Pending(_OfHeads, (heads, weight, bias, dtype, shape))
    rows = join_heads((heads,), heads.shape[1] * heads.shape[3])
    return linear.mapped(rows, weight, bias, dtype).view(*shape, -1)


class ToHeads(torch.autograd.Function):
    """See ``to_heads``. The results are views of one map: no copy, and one gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype, count: int, num_heads: int
    ) -> tuple[Tensor, ...]:
        ctx.shape = shape = x.shape
        out = linear.mapped_in(ctx, x, weight, bias, dtype)
        ctx.width = out.shape[1] // count
        return split_heads(out, shape[0], count, num_heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        of_x, of_weight, of_bias = linear.gradients(ctx, join_heads(grads, ctx.width))
        return None if of_x is None else of_x.view(ctx.shape), of_weight, of_bias, None, None, None


class _OfHeads(torch.autograd.Function):
    """See ``of_heads``."""

    @staticmethod
    def forward(
        ctx: Any, heads: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype, shape: Sequence[int]
    ) -> Tensor:
        batch, num_heads, tokens, dim = heads.shape
        ctx.shape = batch, tokens, num_heads, dim
        return linear.mapped_in(ctx, join_heads((heads,), num_heads * dim), weight, bias, dtype).view(*shape, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        of_rows, of_weight, of_bias = linear.gradients(ctx, grad.reshape(-1, grad.shape[-1]))
        of_heads = None if of_rows is None else of_rows.view(ctx.shape).transpose(1, 2)
        return of_heads, of_weight, of_bias, None, None


def split_heads(rows: Tensor, batch: int, count: int, num_heads: int) -> tuple[Tensor, ...]:
    """Views: (B * N, count * C) -> ``count`` of (B, h, N, d)."""
    if count == 1:
        return (rows.view(batch, -1, num_heads, rows.shape[1] // num_heads).transpose(1, 2),)
    return rows.view(batch, -1, count, num_heads, rows.shape[1] // (count * num_heads)).permute(2, 0, 3, 1, 4).unbind()


def by_head(tokens: Tensor, num_heads: int) -> Tensor:
    """A view: (..., N, C) -> (..., h, N, d)."""
    return tokens.unflatten(-1, (num_heads, -1)).transpose(-3, -2)


def heads_of(qkv: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    """Views: queries, keys and values in one, (B, N, 3C) -> three of (B, h, N, d). See ``split_heads`` for rows."""
    return qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()


def join_heads(heads: Sequence[Tensor], width: int, dim: int = 1) -> Tensor:
    """The inverse of ``split_heads``: ``count`` of (B, h, N, d) -> (B * N, count * C) with C = ``width``. PyTorch's
    attention gives gradients in the memory of tokens, so that the rows of each are a view.

    Args:
        dim: 0: the rows of each come one after the other.
    """
    if len(heads) == 1:
        return heads[0].transpose(1, 2).reshape(-1, width)
    joined = torch.cat([x.transpose(1, 2) for x in heads], 2 * dim)
    return joined.reshape(-1, width if dim == 0 else len(heads) * width)
