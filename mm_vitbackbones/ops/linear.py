"""Linear maps, by device.

In fp32 inference on a CPU these are oneDNN's operators (``ops.onednn``). In training on CUDA they are functions
whose gradients come in the parameters' own type, without casts, and whose biases' gradients take no slow pass of their
own. Everywhere else the modules are called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.ops import bias_sums, context, memory, narrow, onednn
from mm_vitbackbones.ops.bias_sums import HAS_WIDE_PRODUCTS
from mm_vitbackbones.ops.chained import Forked, Pending, finished, then
from mm_vitbackbones.ops.once import direct, once_differentiable, typed

AUTOCAST_FROM = {torch.float32, torch.float16, torch.bfloat16}
"""The types of parameters that autocast casts to its own: not fp64."""


def linear(x: Tensor | Forked, layer: nn.Module, again: bool = False) -> Tensor:
    """``layer(x)`` of an ``nn.Linear``: (..., C) -> (..., C').

    Args:
        again: whether training on a CPU computes the result again instead of keeping it.
    """
    if isinstance(x, Forked) or context.device_type(x) == "cuda":
        return by(x, layer)
    return onednn.linear(x, layer, again)


def by(x: Tensor | Forked, layer: nn.Module) -> Tensor:
    """``layer(x)`` of an ``nn.Linear``, without oneDNN's operator."""
    found = on_cuda(x, layer)
    if found is None or (found[1] is None and torch.is_grad_enabled()):
        return bias_sums.linear(finished(x), layer)
    if isinstance(x, Forked):
        return then(x, _Linear, *found)[0]
    return _linear(x, *found) if torch.is_grad_enabled() else mapped(x, *found)


def begun(x: Tensor, layer: nn.Module) -> Tensor | Pending:
    """``linear``; in training on CUDA, the call that gives it."""
    if torch.is_grad_enabled() and (found := on_cuda(x, layer, biased=True)) is not None:
        return Pending(_Linear, (x, *found))
    return linear(x, layer)


def trains_on_cuda(x: Tensor, layer: nn.Module) -> bool:
    """Whether a linear map with a bias takes its gradients from here; see ``on_cuda``."""
    return torch.is_grad_enabled() and on_cuda(x, layer, biased=True) is not None


def on_cuda(x: Tensor | Forked, *layers: nn.Module, biased: bool = False, known: bool = False) -> list[Any] | None:
    """Of each linear map its weight and bias (or None), then the type of the computation. None where these may not take
    the place of calls: elsewhere than in eager mode on CUDA, where a map is not plain, and where its parameters are
    neither in the type of the computation nor, under autocast, in one that it casts.

    Args:
        biased: whether all must have biases.
        known: that x, of some elements, is worked on in eager mode on CUDA.
    """
    if not known and isinstance(x, Tensor) and not (context.is_eager_on_cuda(x) and x.numel() > 0):
        return None
    own, narrow_type = x.dtype, context.autocast_dtype(x.device)
    dtype = narrow_type or own
    found: list[Any] = []
    for layer in layers:
        if not context.is_plain(layer):
            return None
        parameters = layer.__dict__["_parameters"]
        weight, bias = parameters["weight"], parameters["bias"]
        if weight.dtype != dtype and (narrow_type is None or weight.dtype not in AUTOCAST_FROM):
            return None  # without autocast PyTorch would not take a pair of types
        if biased and bias is None:
            return None
        found += weight, bias
    found.append(dtype)
    return found


def mapped(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x weight' + bias in a type that may be narrower than that of the parameters, without a gradient."""
    if x.dtype == weight.dtype == dtype and (bias is None or bias.dtype == dtype):
        return F.linear(x, weight, bias)
    return F.linear(typed(x, dtype), narrow.of(weight, dtype), None if bias is None else narrow.of(bias, dtype))


def mapped_in(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """x weight' + bias as rows, (..., C) -> (R, C'), and what ``gradients`` needs."""
    ctx.dtypes = x.dtype, weight.dtype, bias.dtype
    weight = narrow.of(weight, dtype)
    rows = typed(x if x.dim() == 2 else x.reshape(-1, weight.shape[1]), dtype)
    if memory.state.policy == memory.LEAST:
        keep_least(ctx, x, rows, weight)
    else:
        ctx.again = None
        ctx.save_for_backward(weight, rows)
    return F.linear(rows, weight, narrow.of(bias, dtype))


def keep_least(ctx: Any, x: Tensor, rows: Tensor, weight: Tensor) -> None:
    """Keeps for ``gradients`` what an input (..., C) is made of, or else its rows, and the weight."""
    ctx.again, sources = memory.sources_of(x)
    ctx.save_for_backward(weight, *(sources or (rows,)))


def gradients(
    ctx: Any, grad: Tensor, of_sums: Tensor | None = None, wanted: Sequence[bool] = ()
) -> tuple[Tensor | None, ...]:
    """The gradients of the rows, the weight and the bias, from that of the result (R, C').

    Args:
        of_sums: in place of it, what is added up for the bias.
        wanted: whether each is; those of the first three inputs, by default.
    """
    weight, *kept = ctx.saved_tensors
    needed, dtypes = wanted or ctx.needs_input_grad, ctx.dtypes
    of_weight = None
    if needed[1]:
        rows = kept[0] if ctx.again is None else ctx.again(*kept).view(-1, weight.shape[1])
        of_weight = product(grad.t(), rows, dtypes[1])
    return (
        product(grad, weight, dtypes[0]) if needed[0] else None,
        of_weight,
        column_sums(grad if of_sums is None else of_sums, dtypes[2]) if needed[2] else None,
    )


class _Linear(torch.autograd.Function):
    """x weight' + bias, in a type that may be narrower than that of the parameters."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.shape = shape = x.shape
        return mapped_in(ctx, x, weight, bias, dtype).view(*shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        of_x, of_weight, of_bias = gradients(ctx, grad.reshape(-1, grad.shape[-1]))
        return None if of_x is None else of_x.view(ctx.shape), of_weight, of_bias, None


_linear = direct(_Linear)


def column_sums(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """(rows, C) -> (C,). On CUDA by a product with ones: PyTorch reduces many rows of few columns in several times what
    reading them takes."""
    if matrix.is_cuda and matrix.dtype != dtype and HAS_WIDE_PRODUCTS:
        return product(_ones(matrix), matrix, dtype).view(-1)
    return matrix.sum(0, dtype=dtype)


def _ones(matrix: Tensor) -> Tensor:
    """(1, rows), of a buffer that is kept: filling it takes as long as many of the products."""
    rows, device = matrix.shape[0], matrix.device
    if torch._C._cuda_isCurrentStreamCapturing() or context.is_fake():  # a graph's own memory must not be kept
        return matrix.new_ones(1, rows)
    key = matrix.dtype, device, torch._C._cuda_getCurrentRawStream(device.index)
    parts = _kept_ones.get(key)
    if parts is None or parts.buffer.shape[1] < rows:
        with torch.inference_mode(False):
            parts = _kept_ones[key] = Ones(torch.ones(1, rows, dtype=matrix.dtype, device=device))
    return parts.of(rows)


class Ones:
    """Parts of a buffer of ones, (1, rows): a part takes as long as a launch, and each length is used many times."""

    MOST = 512
    """Lengths that are kept."""

    def __init__(self, buffer: Tensor) -> None:
        self.buffer = buffer
        self.parts: dict[int, Tensor] = {}

    def of(self, rows: int) -> Tensor:
        """A view of so many of them."""
        if (part := self.parts.get(rows)) is None:
            if len(self.parts) == self.MOST:
                self.parts.clear()
            with torch.inference_mode(False):
                part = self.parts[rows] = self.buffer[:, :rows]
        return part


_kept_ones: dict[Any, Ones] = {}


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """``a @ b`` in a type that may be wider than theirs, without a pass to cast it where PyTorch can."""
    if a.dtype == dtype:
        return torch.mm(a, b)
    if a.is_cuda and HAS_WIDE_PRODUCTS and dtype == torch.float32:
        return torch.mm(a, b, out_dtype=dtype)
    return torch.mm(a, b).to(dtype)
