"""Factorised attention of CoaT, with its class tokens: softmax(k)' v / sqrt(d) = M, then q M + q * position.

B images, N tokens of a grid, h heads of d channels, C = h d. Rows (B * N + B, C) are the tokens of all grids, then the
class tokens of all images, so that one linear map serves both and each grid is contiguous.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mm_vitbackbones.ops import context
from mm_vitbackbones.ops.kernels import registration

MAX_DIM, MAX_UNALIGNED_DIM = 64, 57
"""The widest heads that the kernels serve: of a multiple of 8 channels, and others."""


Triple = tuple[Tensor, Tensor, Tensor]


def _without_autocast(function: Callable[..., Triple]) -> Callable[..., Triple]:
    """The types of the operators are those of their arguments, as for a kernel."""

    @functools.wraps(function)
    def run(*args: Any) -> Triple:
        with context.autocast_to(args[0].device, None):
            return function(*args)

    return run


@_without_autocast
def reference(
    query_key: Tensor, value: Tensor, position: Tensor, batch: int, num_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys (B * N + B, 2C), values (B * N + B, C) and positions (B * N, C) -> rows (B * N + B, C), the
    matrices M (B, h, d, d) and the log-sums of exp(k) over tokens (B, C); the last two in fp32 at least."""
    wide = torch.promote_types(value.dtype, torch.float32)
    query, key = _by_image(query_key, batch).chunk(2, -1)
    share, values = key.softmax(1, wide), _by_image(value, batch).to(wide)
    # The largest share is that of the largest key, and no sum over all tokens is needed again.
    log_sum = key.amax(1).to(wide) - share.amax(1).log_()
    dim = value.shape[1] // num_heads
    matrices = _heads(share, num_heads).mT @ _heads(values, num_heads) * dim**-0.5
    out = _rows((_heads(query, num_heads) @ matrices.to(value.dtype)).transpose(1, 2).flatten(2))
    grids, channels = position.shape
    out[:grids].addcmul_(query_key[:grids, :channels], position)
    return out, matrices, log_sum


@_without_autocast
def reference_backward(
    query_key: Tensor, value: Tensor, position: Tensor, matrices: Tensor, log_sum: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the first three arguments."""
    (batch, num_heads, dim, _), (grids, channels) = matrices.shape, position.shape
    query, key = _by_image(query_key, batch).chunk(2, -1)
    queries, values, grads = (
        _heads(x.to(matrices.dtype), num_heads) for x in (query, _by_image(value, batch), _by_image(grad, batch))
    )
    share = _heads((key - log_sum.unsqueeze(1)).exp_(), num_heads)
    of_matrices = queries.mT @ grads
    of_exponent = (matrices * of_matrices).sum(-1).unsqueeze(2)
    of_matrices *= dim**-0.5
    of_key = (values @ of_matrices.mT).sub_(of_exponent).mul_(share)
    of_query = grads @ matrices.mT
    of_query[:, :, :-1].addcmul_(grads[:, :, :-1], _heads(position.unflatten(0, (batch, -1)), num_heads))
    of_query_key, of_value = torch.empty_like(query_key), torch.empty_like(value)
    results = *of_query_key.chunk(2, -1), of_value
    for rows, tokens in zip(results, (of_query, of_key, share @ of_matrices), strict=True):
        _heads(rows[:grids].unflatten(0, (batch, -1)), num_heads).copy_(tokens[:, :, :-1])
        rows[grids:].copy_(tokens[:, :, -1].flatten(1))
    return of_query_key, of_value, grad[:grids] * query_key[:grids, :channels]


def _by_image(rows: Tensor, batch: int) -> Tensor:
    """(B * N + B, C) -> (B, N + 1, C), the class token last."""
    return torch.cat((rows[:-batch].unflatten(0, (batch, -1)), rows[-batch:].unsqueeze(1)), 1)


def _rows(tokens: Tensor) -> Tensor:
    """(B, N + 1, C) -> (B * N + B, C)."""
    return torch.cat((tokens[:, :-1].flatten(0, 1), tokens[:, -1]))


def _heads(tokens: Tensor, num_heads: int) -> Tensor:
    """(B, N, C) -> (B, h, N, d)."""
    return tokens.unflatten(-1, (num_heads, -1)).transpose(1, 2)


_attend_kernel = registration.kernel("factorized", "attend")
_backward_kernel = registration.kernel("factorized", "attend_backward")


def _launch(
    query_key: Tensor, value: Tensor, position: Tensor, batch: int, num_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    if not served(value, num_heads):
        return reference(query_key, value, position, batch, num_heads)
    return _attend_kernel(query_key, value, position, batch, num_heads)


def _launch_backward(
    query_key: Tensor, value: Tensor, position: Tensor, matrices: Tensor, log_sum: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if not served(value, matrices.shape[1]):
        return reference_backward(query_key, value, position, matrices, log_sum, grad)
    return _backward_kernel(query_key, value, position, matrices, log_sum, grad)


def served(value: Tensor, num_heads: int) -> bool:
    """Whether the kernels have a form for these values (R, C)."""
    channels = value.shape[1]
    dim = channels // num_heads
    known = value.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return known and channels % 8 == 0 and dim <= (MAX_UNALIGNED_DIM if dim % 8 else MAX_DIM)


attend = registration.operator(
    "factorized_attend(Tensor query_key, Tensor value, Tensor position, SymInt batch, int num_heads)"
    " -> (Tensor, Tensor, Tensor)",
    reference,
    _launch,
)
attend_backward = registration.operator(
    "factorized_attend_backward(Tensor query_key, Tensor value, Tensor position, Tensor matrices, Tensor log_sum,"
    " Tensor grad) -> (Tensor, Tensor, Tensor)",
    reference_backward,
    _launch_backward,
)


def _shapes(query_key: Tensor, value: Tensor, position: Tensor, batch: int, num_heads: int) -> Triple:
    channels, wide = value.shape[1], torch.promote_types(value.dtype, torch.float32)
    dim = channels // num_heads
    matrices = value.new_empty((batch, num_heads, dim, dim), dtype=wide)
    return value.new_empty(value.shape), matrices, value.new_empty((batch, channels), dtype=wide)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
    ctx.save_for_backward(*inputs[:3], *output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
    """The matrices and the log-sums are for this gradient alone."""
    return *attend_backward(*ctx.saved_tensors, grad), None, None


registration.in_graphs("factorized_attend", _shapes, _backward, _keep)
registration.in_graphs("factorized_attend_backward", lambda *inputs: tuple(x.new_empty(x.shape) for x in inputs[:3]))
