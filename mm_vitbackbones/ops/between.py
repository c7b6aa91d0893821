"""Attention between two linear maps, as one autograd function: in a step on a GPU each function costs the host as much
as several launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.ops import linear, narrow
from mm_vitbackbones.ops.chained import Forked, then
from mm_vitbackbones.ops.once import direct, once_differentiable, typed


class Attention(NamedTuple):
    """What lies between the maps."""

    forward: Callable[..., tuple[Tensor, Sequence[Tensor]]]
    """Queries, keys and values (B, ..., 3C), the heads and parameters -> (B, ..., C) of the same type, and what is
    kept."""
    backward: Callable[..., Sequence[Tensor]]
    """The gradient of the result, the shape of the first argument, the heads and what is kept -> the gradients of the
    first argument and of the parameters."""


def attend(
    x: Tensor | Forked,
    to_query_key_value: nn.Module,
    attention: Attention,
    parameters: Sequence[Tensor],
    project: nn.Module,
    num_heads: int,
) -> Tensor | None:
    """``project(attention(to_query_key_value(x)))``: (B, ..., C) -> (B, ..., C). None where ``attention`` is to be
    called by itself: elsewhere than in eager mode on CUDA, and where a map is not plain or has no bias."""
    found = linear.on_cuda(x, to_query_key_value, project, biased=True)
    if found is None:
        return None
    weight1, bias1, weight2, bias2, dtype = found
    if not torch.is_grad_enabled() and isinstance(x, Tensor):
        out = attention.forward(linear.mapped(x, weight1, bias1, dtype), num_heads, *parameters)[0]
        return linear.mapped(out, weight2, bias2, dtype)
    inputs = attention, num_heads, dtype, weight1, bias1, weight2, bias2, *parameters
    result: Tensor = then(x, _Between, *inputs)[0] if isinstance(x, Forked) else _between(x, *inputs)
    return result


class _Between(torch.autograd.Function):
    """See ``attend``. Nothing else is kept than by the three functions that this one stands for."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        attention: Attention,
        num_heads: int,
        dtype: torch.dtype,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.dtypes = x.dtype, weight1.dtype, bias1.dtype, weight2.dtype, bias2.dtype
        shape = x.shape[:-1]
        x = typed(x.reshape(-1, x.shape[-1]), dtype)
        narrow1, narrow2 = narrow.of(weight1, dtype), narrow.of(weight2, dtype)
        rows = F.linear(x, narrow1, narrow.of(bias1, dtype))
        out, kept = attention.forward(rows.view(*shape, -1), num_heads, *parameters)
        out = out.view(x.shape[0], -1)
        ctx.save_for_backward(x, narrow1, out, narrow2, *kept)
        ctx.options = attention, num_heads, shape
        return F.linear(out, narrow2, narrow.of(bias2, dtype)).view(*shape, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight1, out, weight2, *kept = ctx.saved_tensors
        attention, num_heads, shape = ctx.options
        needed, dtypes, grad = ctx.needs_input_grad, ctx.dtypes, grad.reshape(-1, grad.shape[-1])
        of_out = torch.mm(grad, weight2).view(*shape, -1)
        of_rows, *others = attention.backward(of_out, (*shape, weight1.shape[0]), num_heads, *kept)
        of_rows = of_rows.view(x.shape[0], -1)
        return (
            linear.product(of_rows, weight1, dtypes[0]).view(*shape, -1) if needed[0] else None,
            None,
            None,
            None,
            linear.product(of_rows.t(), x, dtypes[1]) if needed[4] else None,
            linear.column_sums(of_rows, dtypes[2]) if needed[5] else None,
            linear.product(grad.t(), out, dtypes[3]) if needed[6] else None,
            linear.column_sums(grad, dtypes[4]) if needed[7] else None,
            *others,
        )


_between = direct(_Between)
