"""Attention of channels over channels (El-Nouby et al. 2021, XCiT, section 3.2).

B images, N tokens, C channels, h heads, d = C / h channels of a head; q, k and v are (N, d) of each head:

    softmax(t q' k / (|q| |k|)) of (d, d), applied to the channels of v

|q| are the lengths of the channels of q over all tokens, one for each, and t is a learned factor of the head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mm_vitbackbones.ops import context
from mm_vitbackbones.ops.once import direct, once_differentiable

SHORTEST = 1e-12
"""The least length that is divided by."""


def attend(qkv: Tensor, temperature: Tensor, num_heads: int) -> Tensor:
    """Cross-covariance attention: queries, keys and values (B, N, 3C) -> (B, N, C).

    Lengths divide the (d, d) products, so that no normalised copy of the queries and keys is made, and all products
    read and write the maps where they are. Training keeps ``qkv`` and matrices of (d, d).

    Args:
        temperature: t, (h, 1, 1).
    """
    # Products of fp16 over all tokens could be too large before they are divided.
    if not context.is_eager() or type(qkv) is not Tensor or qkv.is_meta or qkv.dtype == torch.float16:
        return reference(qkv, temperature, num_heads)
    if torch.is_grad_enabled() and (qkv.requires_grad or temperature.requires_grad):
        return _cross_covariance(qkv, temperature, num_heads)
    return _attend(qkv, temperature, num_heads)[0]


def reference(qkv: Tensor, temperature: Tensor, num_heads: int) -> Tensor:
    """``attend``, as the paper writes it."""
    query, key, value = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 4, 1)
    query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
    shares = (query @ key.mT * temperature).softmax(-1)
    return (shares @ value).permute(0, 3, 1, 2).flatten(2)


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over tokens of the products of channels: two of (B, h, N, d), as views -> (B, h, d, d)."""
    if context.device_type(left) == "cuda":  # copies of the views cost less than calls for each image
        return (left.mT @ right).to(dtype)
    return torch.stack([torch.bmm(a.mT, b) for a, b in zip(left, right, strict=True)]).to(dtype)


def _apply(maps: Tensor, matrices: Tensor, out: Tensor) -> None:
    """Writes ``maps @ matrices`` into ``out``: views of (B, h, N, d), and (B, h, d, d)."""
    matrices = matrices.to(maps.dtype)
    if context.device_type(maps) == "cuda":
        out.copy_(maps @ matrices)
        return
    for image, matrix, result in zip(maps, matrices, out, strict=True):
        for head, of_head, result_of_head in zip(image, matrix, result, strict=True):
            torch.mm(head, of_head, out=result_of_head)


def _split(tokens: Tensor, count: int, num_heads: int) -> tuple[Tensor, ...]:
    """Views: (B, N, count * C) -> ``count`` of (B, h, N, d)."""
    return tokens.unflatten(-1, (count, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()


def _attend(qkv: Tensor, temperature: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    """The result, the lengths (B, h, 1 or d, d or 1) of the queries and keys, their cosines, and the shares
    (B, h, d, d)."""
    with context.autocast_to(qkv.device, None):
        wide = torch.promote_types(qkv.dtype, torch.float32)
        query, key, value = _split(qkv, 3, num_heads)
        lengths = torch.linalg.vector_norm(qkv[..., : 2 * qkv.shape[-1] // 3], dim=1, dtype=wide).clamp_min_(SHORTEST)
        of_query, of_key = lengths.unflatten(-1, (2, num_heads, -1)).unbind(1)
        of_query, of_key = of_query.unsqueeze(-1), of_key.unsqueeze(-2)
        cosines = _product(query, key, wide) / (of_query * of_key)
        shares = (cosines * temperature.to(wide)).softmax(-1)
        out = torch.empty_like(qkv[..., : qkv.shape[-1] // 3], memory_format=torch.contiguous_format)
        _apply(value, shares.mT, *_split(out, 1, num_heads))
        return out, of_query, of_key, cosines, shares


class _CrossCovariance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, temperature: Tensor, num_heads: int) -> Tensor:
        out, *matrices = _attend(qkv, temperature, num_heads)
        ctx.save_for_backward(qkv, temperature, *matrices)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        qkv, temperature, length_of_query, length_of_key, cosines, shares = ctx.saved_tensors
        num_heads, wide = len(temperature), shares.dtype
        with torch.autocast(qkv.device.type, enabled=False):
            query, key, value = _split(qkv, 3, num_heads)
            (of_out,) = _split(grad.to(qkv.dtype), 1, num_heads)
            of_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
            of_query, of_key, of_value = _split(of_qkv, 3, num_heads)
            _apply(of_out, shares, of_value)
            of_shares = _product(of_out, value, wide)
            of_logits = torch._softmax_backward_data(of_shares, shares, -1, wide)
            of_temperature = (of_logits * cosines).sum((0, 2, 3)).view_as(temperature).to(temperature.dtype)
            of_cosines = of_logits * temperature.to(wide)
            of_products = of_cosines / (length_of_query * length_of_key)
            # Of a length, divided by it: the gradient of |x| is x / |x|.
            pulled = of_cosines * cosines
            _apply(key, of_products.mT, of_query)
            _apply(query, of_products, of_key)
            of_query.addcmul_(query, (pulled.sum(-1) / length_of_query.squeeze(-1).square()).unsqueeze(2), value=-1)
            of_key.addcmul_(key, (pulled.sum(-2) / length_of_key.squeeze(-2).square()).unsqueeze(2), value=-1)
        return of_qkv, of_temperature, None


_cross_covariance = direct(_CrossCovariance)
