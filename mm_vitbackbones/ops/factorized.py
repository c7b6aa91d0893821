"""Factorised attention: keys and values contracted over all tokens, then applied to queries (CoaT, section 3).

B images, N tokens of a grid, C channels, h heads, d = C / h channels of a head. The class token is separate from the
grid, (B, 1, C) and (B, N, C).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mm_vitbackbones.ops import context, memory, onednn


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


def _contract_image_by_image(key: Tensor, value: Tensor, cls_key: Tensor, cls_value: Tensor, num_heads: int) -> Tensor:
    """Equal to ``_contract``, for inference on a CPU: in place, and image by image, which copies nothing."""
    largest = torch.maximum(key.amax(1, keepdim=True), cls_key)
    weight = (key.sub_(largest) if context.may_overwrite(key) else key - largest).exp_()
    cls_weight = (cls_key - largest).exp_()
    total = weight.sum(1, keepdim=True).add_(cls_weight)
    matrices = torch.stack([_product(w, v, num_heads) for w, v in zip(weight, value, strict=True)])
    return matrices.add_(_product(cls_weight, cls_value, num_heads)).mul_(_scale(total, num_heads))


def _product(weight: Tensor, value: Tensor, num_heads: int) -> Tensor:
    return split_heads(weight, num_heads).mT @ split_heads(value, num_heads)


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
    out = (split_heads(query, num_heads) @ matrices).transpose(1, 2).flatten(2)
    return out if position is None else torch.addcmul(out, query, position)
