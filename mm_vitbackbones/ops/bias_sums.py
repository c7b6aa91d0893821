"""Linear maps in graphs that ``torch.compile`` makes for CUDA, whose biases get their gradients without a pass that
reads the gradient of the result again: PyTorch's compiler fuses no sum over rows with what computes the rows.

B batch, N tokens, C channels.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.ops import anysize, context, narrow
from mm_vitbackbones.ops.kernels import registration
from mm_vitbackbones.ops.kernels.gelu import gelu_backward


def is_for(x: Tensor, *layers: nn.Module) -> bool:
    """Whether these linear maps are part of a training graph for CUDA: plain ones, with biases that are trained."""
    if not context.is_compiling_to_run() or not torch.is_grad_enabled() or context.device_type(x) != "cuda":
        return False
    if not all(map(context.is_plain, layers)):
        return False
    biases = [layer.__dict__["_parameters"]["bias"] for layer in layers]
    if not all(bias is not None and bias.requires_grad for bias in biases):
        return False
    # Gradients of parts of a bias are joined, which autocast to fp16 refuses in bf16, and the reverse.
    dtype = context.autocast_dtype(x.device)
    return dtype is None or all(
        bias.dtype == dtype or bias.dtype not in (torch.bfloat16, torch.float16) for bias in biases
    )


def serves_gelu(x: Tensor, layer: nn.Module) -> bool:
    """Whether ``linear_gelu`` is the form."""
    return is_for(x, layer) and x.dtype != torch.float64 and registration.serve_in_graphs(x)


def linear(x: Tensor, layer: nn.Module) -> Tensor:
    """``layer(x)``: (..., C) -> (..., C')."""
    if (found := narrow.of_layer(layer)) is None:
        return cast(Tensor, layer(x))
    out, bias = F.linear(x, *found), cast("Tensor | None", layer.bias)
    if bias is None or not bias.requires_grad or not torch.is_grad_enabled():
        return out
    return cast(Tensor, _Summed.apply(out, bias))


def _parameters_of(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias, which gets no gradient from here."""
    weight, bias = narrow.of_layer(layer) or (cast(Tensor, layer.weight), cast(Tensor, layer.bias).detach())
    return weight, cast(Tensor, bias)


def linear_gelu(x: Tensor, layer: nn.Module) -> Tensor:
    """``gelu(layer(x))``: (..., C) -> (..., C'). The pass of GELU's gradient makes that of the bias."""
    return cast(Tensor, _Gelu.apply(F.linear(x, *_parameters_of(layer)), layer.bias))


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
    bias = cast(Tensor, layer.bias)
    return cast(Tensor, _Summed.apply(F.linear(x, *_parameters_of(layer)), bias.chunk(3)[0]))


def queries_keys_values(x: Tensor, layer: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """``to_queries_keys_values`` of rows, in three: (R, C) -> each (R, C)."""
    query, key, value = F.linear(x, *_parameters_of(layer)).chunk(3, dim=-1)
    return cast(Tensor, _Summed.apply(query, cast(Tensor, layer.bias).chunk(3)[0])), key, value


def project(x: Tensor, layer: nn.Module, to_queries_keys_values: nn.Module) -> Tensor:
    """``layer(x)`` of the results of softmax attention: (..., C) -> (..., C').

    The shares of a query add up to one, so that the values' bias reaches each result as it is, and the bias of this map
    through its weight.
    """
    weight, bias = cast(Tensor, layer.weight), cast(Tensor, layer.bias)
    of_values = cast(Tensor, to_queries_keys_values.bias).chunk(3)[2]
    return cast(Tensor, _Projected.apply(F.linear(x, *_parameters_of(layer)), bias, weight.detach(), of_values))


class _Projected(torch.autograd.Function):
    """Rows to which a bias has been added, and another bias by a weight."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, bias: Tensor, weight: Tensor, of_values: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtypes = bias.dtype, of_values.dtype
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        sums = _column_sums(grad.flatten(0, -2), weight.dtype)
        with context.autocast_to(grad.device, None):
            of_values = torch.mm(sums.unsqueeze(0), weight)[0]
        return grad, sums.to(ctx.dtypes[0]), None, of_values.to(ctx.dtypes[1])


class _Summed(torch.autograd.Function):
    """Rows to which a bias has been added, in their first channels."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, bias: Tensor) -> Tensor:
        ctx.width, ctx.dtype = bias.shape[0], bias.dtype
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, _column_sums(grad[..., : ctx.width].flatten(0, -2), ctx.dtype)


def _column_sums(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """(R, C) -> (C,). A sum over many rows is two kernels; where a product can give a wider type it is one."""
    are_few = anysize.are_known(rows.shape[0]) and rows.shape[0] < FEW_ROWS
    if rows.is_cuda and rows.dtype != dtype and dtype == torch.float32 and _COMPILES_WIDE_PRODUCTS and not are_few:
        return torch.mm(rows.new_ones(1, rows.shape[0]), rows, out_dtype=dtype).view(-1)
    return rows.sum(0, dtype=dtype)


FEW_ROWS = 512
"""Whose sum is one kernel: those of class tokens."""
HAS_WIDE_PRODUCTS = hasattr(torch.ops.aten.mm, "dtype") and not context.ROCM
"""Whether PyTorch multiplies in another type than that of the factors. For AMD's cards versions 2.8 and 2.9 raise."""
_COMPILES_WIDE_PRODUCTS = HAS_WIDE_PRODUCTS and context.PYTORCH >= (2, 10)
"""Before, PyTorch's compiler does not know them."""
