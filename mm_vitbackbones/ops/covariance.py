"""Attention of channels over channels (El-Nouby et al. 2021, XCiT, section 3.2).

B images, N tokens, C channels, h heads, d = C / h channels of a head; q, k and v are (N, d) of each head:

    softmax(t q' k / (|q| |k|)) of (d, d), applied to the channels of v

|q| are the lengths of the channels of q over all tokens, one for each, and t is a learned factor of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.ops import between, context, linear
from mm_vitbackbones.ops.chained import Forked, finished
from mm_vitbackbones.ops.once import direct, once_differentiable, typed

SHORTEST = 1e-12
"""The least length that is divided by."""


def attend(qkv: Tensor, temperature: Tensor, num_heads: int) -> Tensor:
    """Cross-covariance attention: queries, keys and values (B, ..., 3C) -> (B, ..., C).

    Lengths divide the (d, d) products, so that no normalised copy of the queries and keys is made. Training keeps
    queries, keys and values once, and matrices of (d, d). On a CPU all products read and write the maps where they are;
    on CUDA one copy puts the heads in order, and each product is one call for all images.

    Args:
        temperature: t, (h, 1, 1).
    """
    if not _is_served(qkv, qkv.dtype):
        return reference(qkv, temperature, num_heads)
    trains = context.trains((qkv, temperature))
    if context.device_type(qkv) == "cuda":
        if trains:
            return _cross_covariance_on_cuda(qkv, temperature, num_heads)
        return _attend_on_cuda(qkv, temperature, num_heads)[0]
    tokens = qkv.flatten(1, -2)
    out = _cross_covariance(tokens, temperature, num_heads) if trains else _attend(tokens, temperature, num_heads)[0]
    return out.unflatten(1, qkv.shape[1:-1])


def attend_between(
    grid: Tensor | Forked, to_query_key_value: nn.Module, temperature: Tensor, project: nn.Module, num_heads: int
) -> Tensor:
    """``project(attend(to_query_key_value(grid)))``: (B, ..., C) -> (B, ..., C)."""
    x = grid if isinstance(grid, Tensor) else grid.x
    if context.device_type(x) == "cuda" and _is_served(x, context.autocast_dtype(x.device) or grid.dtype):
        out = between.attend(grid, to_query_key_value, ON_CUDA, (temperature,), project, num_heads)
        if out is not None:
            return out
    grid = finished(grid)
    return linear.linear(attend(linear.linear(grid, to_query_key_value), temperature, num_heads), project)


def _is_served(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether there is another form than the reference. Products of fp16 over all tokens could be too large before they
    are divided."""
    return context.is_eager() and type(x) is Tensor and not x.is_meta and x.numel() > 0 and dtype != torch.float16


def reference(qkv: Tensor, temperature: Tensor, num_heads: int) -> Tensor:
    """``attend``, as the paper writes it."""
    tokens = qkv.flatten(1, -2)
    query, key, value = tokens.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 4, 1).unbind()
    query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
    shares = (query @ key.mT * temperature).softmax(-1)
    return (shares @ value).permute(0, 3, 1, 2).flatten(2).unflatten(1, qkv.shape[1:-1])


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over tokens of the products of channels: two of (B, h, N, d), as views -> (B, h, d, d)."""
    return torch.stack([torch.bmm(a.mT, b) for a, b in zip(left, right, strict=True)]).to(dtype)


def _apply(maps: Tensor, matrices: Tensor, out: Tensor) -> None:
    """Writes ``maps @ matrices`` into ``out``: views of (B, h, N, d), and (B, h, d, d)."""
    for image, matrix, result in zip(maps, matrices.to(maps.dtype), out, strict=True):
        for head, of_head, result_of_head in zip(image, matrix, result, strict=True):
            torch.mm(head, of_head, out=result_of_head)


def _split(tokens: Tensor, count: int, num_heads: int) -> tuple[Tensor, ...]:
    """Views: (B, N, count * C) -> ``count`` of (B, h, N, d)."""
    *places, width = tokens.shape
    return tokens.view(*places, count, num_heads, width // (count * num_heads)).permute(2, 0, 3, 1, 4).unbind()


def _attend(qkv: Tensor, temperature: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    """The result, the lengths (B, h, 1 or d, d or 1) of the queries and keys, their cosines, and the shares
    (B, h, d, d)."""
    with context.autocast_to(qkv.device, None):
        wide = torch.promote_types(qkv.dtype, torch.float32)
        query, key, value = _split(qkv, 3, num_heads)
        lengths = torch.linalg.vector_norm(qkv[..., : 2 * qkv.shape[-1] // 3], dim=1, dtype=wide).clamp_min_(SHORTEST)
        of_query, of_key = lengths.unflatten(-1, (2, num_heads, -1, 1)).unbind(1)
        of_key = of_key.mT
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
        with context.autocast_to(qkv.device, None):
            query, key, value = _split(qkv, 3, num_heads)
            (of_out,) = _split(grad.to(qkv.dtype), 1, num_heads)
            of_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
            of_query, of_key, of_value = _split(of_qkv, 3, num_heads)
            _apply(of_out, shares, of_value)
            of_shares = _product(of_out, value, wide)
            of_logits = torch._softmax_backward_data(of_shares, shares, -1, wide)
            of_temperature, of_products, pull_of_query, pull_of_key = _of_scores(
                of_logits, temperature, length_of_query, length_of_key, cosines
            )
            _apply(key, of_products.mT, of_query)
            _apply(query, of_products, of_key)
            of_query.addcmul_(query, pull_of_query, value=-1)
            of_key.addcmul_(key, pull_of_key, value=-1)
        return of_qkv, of_temperature, None


def _of_scores(
    of_logits: Tensor, temperature: Tensor, length_of_query: Tensor, length_of_key: Tensor, cosines: Tensor
) -> tuple[Tensor, ...]:
    """The gradients of the temperature and of the products, and what queries and keys, multiplied by it, lose, as their
    lengths divide: (B, h, 1, d)."""
    of_temperature = (of_logits * cosines).sum((0, 2, 3)).view_as(temperature)
    of_cosines = of_logits * temperature
    # Of a length, divided by it: the gradient of |x| is x / |x|.
    pulled = of_cosines * cosines
    return (
        typed(of_temperature, temperature.dtype),
        of_cosines / (length_of_query * length_of_key),
        (pulled.sum(-1, keepdim=True) / length_of_query.square()).mT,
        pulled.sum(-2, keepdim=True) / length_of_key.square(),
    )


# ---- on CUDA


def _in_order(tokens: Tensor, count: int, num_heads: int) -> Tensor:
    """A copy: (B, ..., count * C) -> (B * h, N, count * d), where a row holds all of one token and head."""
    batch, width = tokens.shape[0], tokens.shape[-1]
    parts = tokens.reshape(batch, -1, count, num_heads, width // (count * num_heads))
    return parts.permute(0, 3, 1, 2, 4).reshape(batch * num_heads, -1, width // num_heads)


def _attend_on_cuda(qkv: Tensor, temperature: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    """The result, queries, keys and values in order, and what ``_attend`` gives besides."""
    with context.autocast_to(qkv.device, None):
        wide = torch.promote_types(qkv.dtype, torch.float32)
        heads = _in_order(qkv, 3, num_heads)
        dim = heads.shape[-1] // 3
        query, key, value = heads.split_with_sizes([dim] * 3, -1)
        lengths = torch.linalg.vector_norm(heads[..., : 2 * dim], dim=1, dtype=wide).clamp_min_(SHORTEST)
        of_query, of_key = lengths.view(-1, num_heads, 2, dim, 1).unbind(2)
        of_key = of_key.mT
        cosines = torch.bmm(query.mT, key).view(-1, num_heads, dim, dim) / (of_query * of_key)
        shares = (cosines * temperature).softmax(-1)
        result = torch.bmm(value, typed(shares, qkv.dtype).flatten(0, 1).mT)
        out = result.view(-1, num_heads, *result.shape[1:]).transpose(1, 2).reshape(*qkv.shape[:-1], -1)
        return out, heads, of_query, of_key, cosines, shares


def _forward_on_cuda(qkv: Tensor, num_heads: int, temperature: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
    """See ``between.Attention``."""
    out, *kept = _attend_on_cuda(qkv, temperature, num_heads)
    return out, (temperature, *kept)


def _backward_on_cuda(
    grad: Tensor,
    shape: Sequence[int],
    num_heads: int,
    temperature: Tensor,
    heads: Tensor,
    length_of_query: Tensor,
    length_of_key: Tensor,
    cosines: Tensor,
    shares: Tensor,
) -> tuple[Tensor, Tensor]:
    """See ``between.Attention``."""
    dtype, dim = heads.dtype, heads.shape[-1] // 3
    with context.autocast_to(heads.device, None):
        query, key, value = heads.split_with_sizes([dim] * 3, -1)
        of_out = _in_order(typed(grad, dtype), 1, num_heads)
        of_value = torch.bmm(of_out, typed(shares, dtype).flatten(0, 1))
        of_shares = typed(torch.bmm(of_out.mT, value), shares.dtype).view(shares.shape)
        of_logits = torch._softmax_backward_data(of_shares, shares, -1, shares.dtype)
        of_temperature, of_products, *pulls = _of_scores(
            of_logits, temperature, length_of_query, length_of_key, cosines
        )
        of_products = typed(of_products, dtype).flatten(0, 1)
        products = torch.bmm(key, of_products.mT), torch.bmm(query, of_products)
        of_qkv = grad.new_empty(shape, dtype=dtype)
        by_head = shape[0], num_heads, -1, dim
        *parts, part_of_value = _split(of_qkv.view(shape[0], -1, shape[-1]), 3, num_heads)
        for part, product, x, pull in zip(parts, products, (query, key), pulls, strict=True):
            torch.addcmul(product.view(by_head), x.view(by_head), pull, value=-1, out=part)
        part_of_value.copy_(of_value.view(by_head))
    return of_qkv, of_temperature


ON_CUDA = between.Attention(_forward_on_cuda, _backward_on_cuda)


class _CrossCovarianceOnCuda(torch.autograd.Function):
    """``ON_CUDA`` alone."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, temperature: Tensor, num_heads: int) -> Tensor:
        out, kept = _forward_on_cuda(qkv, num_heads, temperature)
        ctx.save_for_backward(*kept)
        ctx.shape, ctx.num_heads = qkv.shape, num_heads
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return *_backward_on_cuda(grad, ctx.shape, ctx.num_heads, *ctx.saved_tensors), None


_cross_covariance, _cross_covariance_on_cuda = map(direct, (_CrossCovariance, _CrossCovarianceOnCuda))
