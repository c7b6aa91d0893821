"""Factorised attention: keys and values contracted over all tokens, then applied to queries (CoaT, section 3).

B images, N tokens of a grid, C channels, h heads, d = C / h channels of a head. The class token is separate from the
grid, (B, 1, C) and (B, N, C).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.ops import anysize, bias_sums, context, factorized_rows, joint, memory, onednn
from mm_vitbackbones.ops.conv import Windows
from mm_vitbackbones.ops.head_maps import by_head
from mm_vitbackbones.ops.joint import Pair, Rows, Tokens
from mm_vitbackbones.ops.kernels import factorized as kernels
from mm_vitbackbones.ops.once import typed

BLOCK = 256
"""Tokens whose product is one matrix product in a compiled graph on CUDA: the sum over all tokens is one of few, long
dot products, which would leave most of the card without work."""


def attend_all(
    tokens: Tokens,
    maps: Sequence[nn.Module],
    relative_position: Callable[[Tensor], Tensor],
    convs: Sequence[nn.Module],
    windows: Windows | None,
    num_heads: int,
    lightly: Callable[..., Tensor],
    again: bool,
) -> Tokens:
    """``project(Q (softmax(K)' V) / sqrt(d) + Q * relative_position(V))``; a class token has no relative positions.

    Args:
        maps: linear maps: to queries and keys side by side, C -> 2C, to values, C -> C, and ``project``.
        relative_position: keeps the shape of a grid of values.
        convs: those that it calls: depthwise ones, each of the next channels.
        windows: what is called in their place, see ``ops.conv.windows``.
        lightly: ``Recomputable.lightly``, which calls a function of the inputs that follow it.
        again: whether it computes that function again in the backward pass; for the form that does so by itself.
    """
    of_pair = maps, relative_position, convs, num_heads, lightly
    if not isinstance(tokens, Rows):
        return _attend_pair(tokens, *of_pair)
    if context.is_compiling_to_run():
        return _attend_rows_in_graph(tokens, *of_pair)
    attended = factorized_rows.attend(tokens, maps, convs, windows, num_heads, again)
    return joint.rows_of(*_attend_pair(joint.pair(tokens), *of_pair)) if attended is None else attended


def _attend_pair(
    tokens: Pair,
    maps: Sequence[nn.Module],
    relative_position: Callable[[Tensor], Tensor],
    convs: Sequence[nn.Module],
    num_heads: int,
    lightly: Callable[..., Tensor],
) -> Pair:
    """``attend_all`` of a pair."""
    to_query_key, to_value, project = maps
    query_key, value = (cast(Pair, joint.linear(tokens, layer)) for layer in (to_query_key, to_value))
    joint.release(tokens)
    (cls_query, cls_key), (query, key) = (x.flatten(1, 2).chunk(2, dim=-1) for x in query_key)
    matrices = contract(key, value[1].flatten(1, 2), cls_key, value[0].flatten(1, 2), num_heads)
    cls = bias_sums.linear(attend(cls_query, matrices), project).view_as(value[0])

    def of_grid(query: Tensor, matrices: Tensor, grid: Tensor, _: Sequence[nn.Module]) -> Tensor:
        position = relative_position(grid).flatten(1, 2)
        context.release(grid)
        return onednn.linear(attend(query, matrices, position), project).view_as(grid)

    return cls, lightly(of_grid, query, matrices, value[1], convs)


# ---- on CUDA


def _attend_rows_in_graph(
    tokens: Rows,
    maps: Sequence[nn.Module],
    relative_position: Callable[[Tensor], Tensor],
    convs: Sequence[nn.Module],
    num_heads: int,
    lightly: Callable[..., Tensor],
) -> Rows:
    """``attend_all`` in a compiled graph: all that is between its maps are two operators."""
    to_query_key, to_value, project = maps
    query_key, value = (bias_sums.linear(tokens.rows, layer) for layer in (to_query_key, to_value))
    if not kernels.served(value, num_heads):
        return joint.rows_of(*_attend_pair(joint.pair(tokens), maps, relative_position, convs, num_heads, lightly))

    def mixed(query_key: Tensor, value: Tensor, _: Sequence[nn.Module]) -> Tensor:
        grid = joint.pair(Rows(value, tokens.shape))[1]
        position = relative_position(grid).flatten(0, 2)
        out = kernels.attend(query_key, value, position, tokens.shape[0], num_heads)[0]
        return bias_sums.linear(out, project)

    return Rows(lightly(mixed, query_key, value, convs), tokens.shape)


def contract(key: Tensor, value: Tensor, cls_key: Tensor, cls_value: Tensor, num_heads: int) -> Tensor:
    """softmax(k)' v / sqrt(d) of all tokens, of which the first is the class token: -> (B, h, d, d).

    In fp32 at least: a narrower type would lose most of a sum over a hundred thousand tokens. Training computes the
    softmax again in the backward pass instead of keeping it.
    """
    if onednn.usable(key) and key.shape[0] > 0:
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
    return anysize.in_order(by_head(weight, num_heads).mT) @ anysize.in_order(by_head(value, num_heads))


def _scale(total: Tensor, num_heads: int) -> Tensor:
    """The factor of each row of the matrices: the softmax's denominator is the same in the whole row."""
    return (total.shape[-1] // num_heads) ** -0.5 / by_head(total, num_heads).mT


def attend(query: Tensor, matrices: Tensor, position: Tensor | None = None) -> Tensor:
    """q matrices + q * position: queries (B, N, C) and matrices (B, h, d, d) -> (B, N, C).

    Args:
        position: (B, N, C), what the relative positions add to the values; None for a class token, which has none.
    """
    num_heads = matrices.shape[1]
    if position is not None and onednn.usable(query):
        out = position.mul_(query) if context.may_overwrite(position) else position * query
        for image, q, matrices_of_image in zip(out, query, matrices, strict=True):
            heads = zip(by_head(image, num_heads), by_head(q, num_heads), matrices_of_image, strict=True)
            for result, head, matrix in heads:
                result.addmm_(head, matrix)
        return out
    out = (anysize.in_order(by_head(query, num_heads)) @ matrices).transpose(1, 2)
    out = anysize.in_order(out).flatten(2)
    return out if position is None else torch.addcmul(out, query, position)
