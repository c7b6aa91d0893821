"""Linear maps in graphs that ``torch.compile`` makes for CUDA, whose biases get their gradients without a pass that
reads the gradient of the result again: PyTorch's compiler fuses no sum over rows with what computes the rows.

B batch, N tokens, C channels.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.ops import context
from mm_vitbackbones.ops.kernels import registration
from mm_vitbackbones.ops.kernels.gelu import gelu_backward


def is_for(x: Tensor, *layers: nn.Module) -> bool:
    """Whether these linear maps are part of a training graph for CUDA: plain ones, with biases that are trained."""
    if not context.is_compiling_to_run() or not torch.is_grad_enabled() or context.device_type(x) != "cuda":
        return False
    if not all(map(context.is_plain, layers)):
        return False
    biases = [layer.__dict__["_parameters"]["bias"] for layer in layers]
    return all(bias is not None and bias.requires_grad for bias in biases)


def serves_gelu(x: Tensor, layer: nn.Module) -> bool:
    """Whether ``linear_gelu`` is the form."""
    if not is_for(x, layer) or not registration.CAN_REGISTER_GRADIENTS or x.dtype == torch.float64:
        return False
    return registration.is_usable_in_graphs(x) or not x.is_cuda  # not on CUDA: a test pretends


def linear_gelu(x: Tensor, layer: nn.Module) -> Tensor:
    """``gelu(layer(x))``: (..., C) -> (..., C'). The pass of GELU's gradient makes that of the bias."""
    weight, bias = cast(Tensor, layer.weight), cast(Tensor, layer.bias)
    return cast(Tensor, _Gelu.apply(F.linear(x, weight, bias.detach()), bias))


class _Gelu(torch.autograd.Function):
    """GELU of what a bias has been added to."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(hidden)
        ctx.dtype = bias.dtype
        return F.gelu(hidden)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (hidden,) = ctx.saved_tensors
        width = hidden.shape[-1]
        of_hidden, sums = gelu_backward(grad.reshape(-1, width), hidden.reshape(-1, width))
        return of_hidden.view(hidden.shape), sums.to(ctx.dtype)


def to_queries_keys_values(x: Tensor, layer: nn.Module) -> Tensor:
    """``layer(x)`` of a linear map C -> 3C, where ``is_for`` this and the map after attention: (..., C) -> (..., 3C).

    The bias gets the gradient of the queries' part here. Softmax does not change with the keys' part, which adds the
    same number to all scores of a query: its gradient is zero. That of the values' part comes from ``project``.
    """
    weight, bias = cast(Tensor, layer.weight), cast(Tensor, layer.bias)
    return cast(Tensor, _Summed.apply(F.linear(x, weight, bias.detach()), bias.chunk(3)[0]))


def queries_keys_values(x: Tensor, layer: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """``to_queries_keys_values`` of rows, in three: (R, C) -> each (R, C)."""
    weight, bias = cast(Tensor, layer.weight), cast(Tensor, layer.bias)
    query, key, value = F.linear(x, weight, bias.detach()).chunk(3, dim=-1)
    return cast(Tensor, _Summed.apply(query, bias.chunk(3)[0])), key, value


def project(x: Tensor, layer: nn.Module, to_queries_keys_values: nn.Module) -> Tensor:
    """``layer(x)`` of the results of softmax attention: (..., C) -> (..., C').

    The shares of a query add up to one, so that the values' bias reaches each result as it is, and the bias of this map
    through its weight. What is added here is zero, and has the gradient.
    """
    weight, bias = cast(Tensor, layer.weight), cast(Tensor, layer.bias)
    of_values = cast(Tensor, to_queries_keys_values.bias).chunk(3)[2]
    zero = of_values - of_values.detach()
    return F.linear(x, weight, bias + (weight.detach() * zero).sum(1))


class _Summed(torch.autograd.Function):
    """Rows to which a bias has been added, in their first channels."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, bias: Tensor) -> Tensor:
        ctx.width, ctx.dtype = bias.shape[0], bias.dtype
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, grad[..., : ctx.width].flatten(0, -2).sum(0, dtype=ctx.dtype)
