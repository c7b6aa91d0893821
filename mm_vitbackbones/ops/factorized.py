"""Factorised attention: keys and values contracted over all tokens, then applied to queries (CoaT, section 3).

B images, N tokens of a grid, C channels, h heads, d = C / h channels of a head. The class token is separate from the
grid, (B, 1, C) and (B, N, C).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.ops import anysize, context, linear, memory, onednn
from mm_vitbackbones.ops.joint import Pair, Rows, Tokens
from mm_vitbackbones.ops.kernels import factorized as kernels
from mm_vitbackbones.ops.once import direct, once_differentiable, typed

BLOCK = 256
"""Tokens whose product is one matrix product in a compiled graph on CUDA: the sum over all tokens is one of few, long
dot products, which would leave most of the card without work."""


def mix(
    query_key: Tokens,
    value: Tokens,
    relative_position: Callable[[Tensor], Tensor],
    project: nn.Module,
    num_heads: int,
    lightly: Callable[..., Tensor],
) -> Tokens:
    """``project(Q (softmax(K)' V) / sqrt(d) + Q * relative_position(V))``; a class token has no relative positions.

    Args:
        query_key: queries and keys side by side, of 2C channels.
        value: of C channels.
        relative_position: keeps the shape of a grid of values.
        project: a linear map.
        lightly: calls a function with tensors that follow, or computes it again in the backward pass.
    """
    if isinstance(value, Rows):
        return _mix_rows(cast(Rows, query_key), value, relative_position, project, num_heads, lightly)
    (cls_query, cls_key), (query, key) = (x.flatten(1, 2).chunk(2, dim=-1) for x in cast(Pair, query_key))
    matrices = contract(key, value[1].flatten(1, 2), cls_key, value[0].flatten(1, 2), num_heads)
    cls = project(attend(cls_query, matrices)).view_as(value[0])

    def of_grid(query: Tensor, matrices: Tensor, grid: Tensor) -> Tensor:
        position = relative_position(grid).flatten(1, 2)
        context.release(grid)
        return onednn.linear(attend(query, matrices, position), project).view_as(grid)

    return cls, lightly(of_grid, query, matrices, value[1])


def _mix_rows(
    query_key: Rows,
    value: Rows,
    relative_position: Callable[[Tensor], Tensor],
    project: nn.Module,
    num_heads: int,
    lightly: Callable[..., Tensor],
) -> Rows:
    """``mix`` by the kernels for CUDA."""

    def of_rows(query_key: Tensor, values: Tensor) -> Tensor:
        values, grid = Rows(values, value.shape).with_grid()
        position = relative_position(grid).flatten(0, 2).to(values.dtype)
        return linear.linear(_mixed(query_key, values, position, len(grid), num_heads), project)

    return Rows(lightly(of_rows, query_key.rows, value.rows), value.shape)


class _Mixed(torch.autograd.Function):
    """The operators of ``ops.kernels.factorized``. The backward pass reads keys and values once more, and the sums."""

    @staticmethod
    def forward(ctx: Any, query_key: Tensor, value: Tensor, position: Tensor, batch: int, num_heads: int) -> Tensor:
        out, matrices, log_sum = kernels.attend(query_key, value, position, batch, num_heads)
        ctx.save_for_backward(query_key, value, position, matrices, log_sum)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return *kernels.attend_backward(*ctx.saved_tensors, grad), None, None


_mixed = direct(_Mixed)


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """A view: (..., N, C) -> (..., h, N, d)."""
    return tokens.unflatten(-1, (num_heads, -1)).transpose(-3, -2)


def contract(key: Tensor, value: Tensor, cls_key: Tensor, cls_value: Tensor, num_heads: int) -> Tensor:
    """softmax(k)' v / sqrt(d) of all tokens, of which the first is the class token: -> (B, h, d, d).

    In fp32 at least: a narrower type would lose most of a sum over a hundred thousand tokens. Training computes the
    softmax again in the backward pass instead of keeping it.
    """
    if onednn.usable(key):
        return _contract_image_by_image(key, value, cls_key, cls_value, num_heads)
    if context.is_exporting():
        return _contract_together(key, value, cls_key, cls_value, num_heads)
    if context.device_type(key) == "cuda" and not context.is_eager():
        return _contract_in_blocks(key, value, cls_key, cls_value, num_heads).to(key.dtype)
    # Compilers choose by themselves what to compute again.
    what = memory.ALL if context.is_eager() else memory.NOTHING
    matrices = memory.recomputed(_contract, key, value, cls_key, cls_value, num_heads, what=what)
    return matrices.to(key.dtype)


def _contract(key: Tensor, value: Tensor, cls_key: Tensor, cls_value: Tensor, num_heads: int) -> Tensor:
    with context.autocast_to(key.device, None):
        dtype = torch.promote_types(key.dtype, torch.float32)
        key, value, cls_key, cls_value = (x.to(dtype) for x in (key, value, cls_key, cls_value))
        largest = torch.maximum(key.amax(1, keepdim=True), cls_key).detach()
        weight, cls_weight = (key - largest).exp(), (cls_key - largest).exp()
        total = weight.sum(1, keepdim=True) + cls_weight
        matrices = _product(weight, value, num_heads) + _product(cls_weight, cls_value, num_heads)
        return matrices * _scale(total, num_heads)


def _contract_together(key: Tensor, value: Tensor, cls_key: Tensor, cls_value: Tensor, num_heads: int) -> Tensor:
    """Equal to ``_contract``, with the class token among the others: half as many nodes of an exported graph."""
    dtype = torch.float64 if key.dtype == torch.float64 else torch.float32  # `promote_types` would be a node
    wide = typed(torch.cat((cls_key, key), 1), dtype)
    weight = (wide - wide.amax(1, keepdim=True)).exp()
    matrices = _product(weight, typed(torch.cat((cls_value, value), 1), dtype), num_heads)
    return typed(matrices * _scale(weight.sum(1, keepdim=True), num_heads), key.dtype)


def _contract_in_blocks(key: Tensor, value: Tensor, cls_key: Tensor, cls_value: Tensor, num_heads: int) -> Tensor:
    """Equal to ``_contract``: a product of all channels with all for each block of tokens, of which those within a head
    are used. Only the operands are in a narrow type."""
    with context.autocast_to(key.device, None):
        dtype = torch.promote_types(key.dtype, torch.float32)
        wide, cls_wide = key.to(dtype), cls_key.to(dtype)
        largest = torch.maximum(wide.amax(1, keepdim=True), cls_wide).detach()
        weight, cls_weight = (wide - largest).exp(), (cls_wide - largest).exp()
        total = weight.sum(1, keepdim=True) + cls_weight
        blocks = (F.pad(x.to(value.dtype), (0, 0, 0, -x.shape[1] % BLOCK)) for x in (weight, value))
        weights, values = (x.unflatten(1, (-1, BLOCK)) for x in blocks)
        product = (weights.mT @ values).sum(1, dtype=dtype).unflatten(2, (num_heads, -1)).unflatten(1, (num_heads, -1))
        matrices = product.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
        matrices = matrices + _product(cls_weight, cls_value.to(dtype), num_heads)
        return matrices * _scale(total, num_heads)


def _contract_image_by_image(key: Tensor, value: Tensor, cls_key: Tensor, cls_value: Tensor, num_heads: int) -> Tensor:
    """Equal to ``_contract``, for inference on a CPU: in place, and image by image, which copies nothing."""
    largest = torch.maximum(key.amax(1, keepdim=True), cls_key)
    weight = (key.sub_(largest) if context.may_overwrite(key) else key - largest).exp_()
    cls_weight = (cls_key - largest).exp_()
    total = weight.sum(1, keepdim=True).add_(cls_weight)
    matrices = torch.stack([_product(w, v, num_heads) for w, v in zip(weight, value, strict=True)])
    return matrices.add_(_product(cls_weight, cls_value, num_heads)).mul_(_scale(total, num_heads))


def _product(weight: Tensor, value: Tensor, num_heads: int) -> Tensor:
    return anysize.in_order(split_heads(weight, num_heads).mT) @ anysize.in_order(split_heads(value, num_heads))


def _scale(total: Tensor, num_heads: int) -> Tensor:
    """The factor of each row of the matrices: the softmax's denominator is the same in the whole row."""
    return (total.shape[-1] // num_heads) ** -0.5 / split_heads(total, num_heads).mT


def attend(query: Tensor, matrices: Tensor, position: Tensor | None = None) -> Tensor:
    """q matrices + q * position: queries (B, N, C) and matrices (B, h, d, d) -> (B, N, C).

    Args:
        position: (B, N, C), what the relative positions add to the values; None for a class token, which has none.
    """
    num_heads = matrices.shape[1]
    if position is not None and onednn.usable(query):
        out = position.mul_(query) if context.may_overwrite(position) else position * query
        for image, q, matrices_of_image in zip(out, query, matrices, strict=True):
            heads = zip(split_heads(image, num_heads), split_heads(q, num_heads), matrices_of_image, strict=True)
            for result, head, matrix in heads:
                result.addmm_(head, matrix)
        return out
    out = (anysize.in_order(split_heads(query, num_heads)) @ matrices).transpose(1, 2)
    out = anysize.in_order(out).flatten(2)
    return out if position is None else torch.addcmul(out, query, position)
