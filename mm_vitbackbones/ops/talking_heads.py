"""Attention whose heads are mixed before the softmax and after it: the talking heads of CaiT, in bands of queries.

B batch, N tokens, C channels, h heads, d = C / h channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mm_vitbackbones.ops import between, context, head_maps, linear, narrow
from mm_vitbackbones.ops.attention import joined
from mm_vitbackbones.ops.chained import Forked, finished
from mm_vitbackbones.ops.kernels import registration
from mm_vitbackbones.ops.once import direct, once_differentiable, typed

BAND_BYTES, CUDA_BAND_BYTES = 2**20, 64 * 2**20
"""The size of one tensor (h, n, N) of a band of n queries: on a CPU it fits into the caches, on CUDA there are few
launches."""
FEWEST_QUERIES = 32
"""Of a band, whose products would otherwise take a third longer."""


def attend(qkv: Tensor, before: nn.Module, after: nn.Module, num_heads: int) -> Tensor:
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
        return _as_grid(reference(qkv.flatten(1, -2), before, after, num_heads), qkv)
    of_before, of_after = before._parameters, after._parameters
    unseen, weight1, weight2, bias = cast(
        "list[Tensor]", [of_before["bias"], of_before["weight"], of_after["weight"], of_after["bias"]]
    )
    if not context.is_eager():
        weight1, weight2 = _weight_in_graph(before, weight1), _weight_in_graph(after, weight2)
        weight1 = weight1 + 0 * unseen  # which gives the unseen bias a gradient, zeros
    elif context.trains((qkv, unseen, weight1, weight2, bias)):
        return _mixed(qkv, unseen, weight1, weight2, bias, num_heads)
    return _as_grid(mixed_heads(qkv.flatten(1, -2), weight1, weight2, bias, num_heads), qkv)


def _weight_in_graph(layer: nn.Module, weight: Tensor) -> Tensor:
    """The weight of a linear map: the copy that a compiled block has made of it, or itself."""
    copies = narrow.of_layer(layer)
    return weight if copies is None else copies[0]


def attend_between(
    grid: Tensor | Forked,
    to_query_key_value: nn.Module,
    before: nn.Module,
    after: nn.Module,
    project: nn.Module,
    num_heads: int,
) -> Tensor:
    """``project(attend(to_query_key_value(grid)))``: (B, ..., C) -> (B, ..., C)."""
    x = grid if isinstance(grid, Tensor) else grid.x
    if context.device_type(x) == "cuda" and context.is_eager() and _mixes_in_bands(x, before, after):
        of_before, of_after = before.__dict__["_parameters"], after.__dict__["_parameters"]
        parameters = of_before["bias"], of_before["weight"], of_after["weight"], of_after["bias"]
        out = between.attend(grid, to_query_key_value, BETWEEN, parameters, project, num_heads)
        if out is not None:
            return out
    grid = finished(grid)
    mixed = attend(linear.linear(grid, to_query_key_value, again=True), before, after, num_heads)
    return linear.linear(mixed, project)


def _as_grid(tokens: Tensor, like: Tensor) -> Tensor:
    """Tokens (B, N, C) -> (B, ..., C), as those of another tensor."""
    return tokens if like.dim() == 3 else tokens.unflatten(1, like.shape[1:-1])


def reference(qkv: Tensor, before: nn.Module, after: nn.Module, num_heads: int) -> Tensor:
    """``attend``, as the paper writes it: (B, N, 3C) -> (B, N, C)."""
    query, key, value = head_maps.heads_of(qkv, num_heads)
    scores = (query * query.shape[-1] ** -0.5) @ key.mT
    shares = before(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(-1)
    mixed = after(shares.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return joined(mixed @ value)


def _mixes_in_bands(qkv: Tensor, before: nn.Module, after: nn.Module) -> bool:
    """Whether bands take the place of the reference: not on tensors without data or elements, and not in a graph that
    leaves this process. ``torch.compile`` would keep several matrices of N x N, so its graphs hold the operator."""
    if context.is_eager():
        if type(qkv) is not Tensor or qkv.is_meta or qkv.numel() == 0:
            return False
    elif not context.is_compiling_to_run() or not registration.CAN_REGISTER_GRADIENTS:
        return False
    plain = context.is_plain(before) and context.is_plain(after)
    return plain and before._parameters["bias"] is not None and after._parameters["bias"] is not None


class _Bands:
    """How the scores of images are cut into bands: as many queries of an image as fit, or several small images. All
    bands write into the same memory: pages of new tensors would take as long as the products.

    Args:
        count: buffers (h * b, n, N), for n queries of each of b images.
    """

    def __init__(self, qkv: Tensor, num_heads: int, count: int) -> None:
        self.qkv, self.num_heads, self.count, self.tokens = qkv, num_heads, count, qkv.shape[1]
        self.queries, self.images = _size_of_band(qkv, num_heads)
        self.memory = qkv.new_empty(count, self.images * num_heads * self.queries * self.tokens)

    def groups(self) -> Iterator[slice]:
        """The images that are computed at a time."""
        return (slice(first, first + self.images) for first in range(0, len(self.qkv), self.images))

    def of(self, heads: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
        """The queries of each band, and its buffers, of some images' queries (h * b, N, d)."""
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


def _scaled_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    """Scaled queries, keys and values of b images: (b, N, 3C) -> three of (h * b, N, d). The heads come first, so that
    one product mixes those of all images."""
    images, tokens, width = qkv.shape
    dim = width // (3 * num_heads)
    parts = qkv.reshape(images, tokens, 3, num_heads, dim).permute(2, 3, 0, 1, 4)
    parts = parts.clone(memory_format=torch.contiguous_format).view(3, -1, tokens, dim)  # also where it has this order
    query, key, value = parts.unbind()
    return query.mul_(dim**-0.5), key, value


def _of_each_image(bias: Tensor, heads: Tensor) -> Tensor:
    """A number for each head (h), for heads (h * b, N, d): (h * b, 1, 1)."""
    return bias[:, None].expand(-1, len(heads) // len(bias)).reshape(-1, 1, 1)


def _mix(weight: Tensor, heads: Tensor, out: Tensor | None = None) -> Tensor:
    """(h * b, n, N) -> (h * b, n, N), by a weight (h, h)."""
    flat = heads.view(len(weight), -1)
    if out is None:
        return torch.mm(weight, flat).view(heads.shape)
    torch.mm(weight, flat, out=out.view(flat.shape))
    return out


def _of_weight(grad: Tensor, heads: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the weight of ``_mix``, in fp32 at least."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    if context.device_type(grad) != "cuda":
        return torch.mm(grad.view(len(weight), -1), heads.view(len(weight), -1).t()).to(wide)
    # One sum of so many terms would keep few blocks of the card busy: each query has a sum of its own.
    grad, heads = [x.view(len(weight), -1, x.shape[-1]).transpose(0, 1) for x in (grad, heads)]
    return torch.bmm(grad, heads.mT).sum(0, dtype=wide)


def _mixed_heads(qkv: Tensor, before: Tensor, after: Tensor, bias: Tensor, num_heads: int) -> Tensor:
    """``attend`` in bands, in the type of ``qkv``."""
    with context.autocast_to(qkv.device, None):
        before, after, bias = [typed(x, qkv.dtype) for x in (before, after, bias)]
        mixed = _mixed_in_one_band if _is_one_band(qkv, num_heads) else _mixed_in_bands
        return mixed(qkv, before, after, bias, num_heads)


def _mixed_in_one_band(qkv: Tensor, before: Tensor, after: Tensor, bias: Tensor, num_heads: int) -> Tensor:
    images, tokens, width = qkv.shape
    query, key, value = _scaled_heads(qkv, num_heads)
    by_head = num_heads, images, tokens, query.shape[-1]
    constant = value.view(by_head).sum(2, keepdim=True) * bias.view(-1, 1, 1, 1)
    shares = torch.softmax(_mix(before, torch.bmm(query, key.mT)), -1)
    result = torch.bmm(_mix(after, shares), value)
    out = qkv.new_empty(images, tokens, width // 3)
    torch.add(result.view(by_head), constant, out=out.unflatten(-1, (num_heads, -1)).permute(2, 0, 1, 3))
    return out


def _mixed_in_bands(qkv: Tensor, before: Tensor, after: Tensor, bias: Tensor, num_heads: int) -> Tensor:
    out = qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)
    bands = _Bands(qkv, num_heads, 2)
    for group in bands.groups():
        query, key, value = _scaled_heads(qkv[group], num_heads)
        constant = _of_each_image(bias, value) * value.sum(1, keepdim=True)
        of_heads = out[group].unflatten(-1, (num_heads, -1)).permute(2, 0, 1, 3)
        for band, (a, b) in bands.of(query):
            torch.bmm(query[:, band], key.mT, out=a)
            shares = torch.softmax(_mix(before, a, out=b), -1, out=a)
            result = torch.baddbmm(constant, _mix(after, shares, out=b), value)
            of_heads[:, :, band] = result.unflatten(0, (num_heads, -1))
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
        before, after, bias, grad = [typed(x, qkv.dtype) for x in (before, after, bias, grad)]
        gradients = _gradients_in_one_band if _is_one_band(qkv, num_heads) else _gradients_in_bands
        return gradients(grad, qkv, before, after, bias, num_heads)


def _gradients_in_one_band(
    grad: Tensor, qkv: Tensor, before: Tensor, after: Tensor, bias: Tensor, num_heads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = torch.promote_types(qkv.dtype, torch.float32)
    images, tokens, _ = qkv.shape
    query, key, value = _scaled_heads(qkv, num_heads)
    of_out = grad.unflatten(-1, (num_heads, -1)).permute(2, 0, 1, 3).reshape(query.shape)
    by_head = num_heads, images, tokens, query.shape[-1]
    column, of_values = [x.view(by_head).sum(2, keepdim=True, dtype=wide) for x in (of_out, value)]
    of_bias = (column * of_values).sum((1, 2, 3))
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
    parts = of_qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 3, 0, 1, 4).unbind()
    torch.mul(of_query.view(by_head), query.shape[-1] ** -0.5, out=parts[0])
    parts[1].copy_(of_key.view(by_head))
    torch.add(of_value.view(by_head), column * bias.view(-1, 1, 1, 1), out=parts[2])
    return of_qkv, of_before, of_after, of_bias


def _gradients_in_bands(
    grad: Tensor, qkv: Tensor, before: Tensor, after: Tensor, bias: Tensor, num_heads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = torch.promote_types(qkv.dtype, torch.float32)
    of_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    of_before, of_after, of_bias = (torch.zeros_like(x, dtype=wide) for x in (before, after, bias))
    bands = _Bands(qkv, num_heads, 4)
    for group in bands.groups():
        query, key, value = _scaled_heads(qkv[group], num_heads)
        of_out = grad[group].unflatten(-1, (num_heads, -1)).permute(2, 0, 1, 3).contiguous().flatten(0, 1)
        column = of_out.sum(1, keepdim=True, dtype=wide)
        of_bias += (column * value.sum(1, keepdim=True, dtype=wide)).sum((1, 2)).view(num_heads, -1).sum(1)
        of_query, of_key, of_value = query.new_zeros((3, *query.shape), dtype=wide)
        of_value += _of_each_image(bias, value) * column
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
        parts = of_qkv[group].unflatten(-1, (3, num_heads, -1)).permute(2, 3, 0, 1, 4)
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


def _forward(
    qkv: Tensor, num_heads: int, unseen: Tensor, before: Tensor, after: Tensor, bias: Tensor
) -> tuple[Tensor, Sequence[Tensor]]:
    """See ``between.Attention``."""
    tokens = qkv.flatten(1, -2)
    weights = [narrow.of(x, qkv.dtype) for x in (before, after, bias)]
    # The parameters themselves say the types of their gradients.
    kept = tokens, unseen, *weights, *((before, after, bias) if before.dtype != qkv.dtype else ())
    return mixed_heads(tokens, *weights, num_heads).view(*qkv.shape[:-1], -1), kept


def _backward(
    grad: Tensor, shape: Sequence[int], num_heads: int, tokens: Tensor, unseen: Tensor, *weights: Tensor
) -> tuple[Tensor, ...]:
    """See ``between.Attention``."""
    before, after, bias = weights[:3]
    of_qkv, *sums = _mixed_gradients(grad.flatten(1, -2), tokens, before, after, bias, num_heads)
    of_weights = [typed(x, like.dtype) for x, like in zip(sums, weights[-3:], strict=True)]
    return of_qkv.view(shape), torch.zeros_like(unseen), *of_weights


BETWEEN = between.Attention(_forward, _backward)


class _MixedHeads(torch.autograd.Function):
    """``mixed_heads``, which keeps its arguments alone."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, unseen: Tensor, before: Tensor, after: Tensor, bias: Tensor, num_heads: int
    ) -> Tensor:
        out, kept = _forward(qkv, num_heads, unseen, before, after, bias)
        ctx.save_for_backward(*kept)
        ctx.shape, ctx.num_heads = qkv.shape, num_heads
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return *_backward(grad, ctx.shape, ctx.num_heads, *ctx.saved_tensors), None


_mixed = direct(_MixedHeads)
