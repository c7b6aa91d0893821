"""Linear maps and feed-forward networks, by device.

In fp32 inference on a CPU these are oneDNN's fused operators (``ops.onednn``). In training on CUDA they are functions
whose gradients come in the parameters' own type, without casts, and whose biases' gradients take no slow pass of their
own. Everywhere else the modules are called one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.ops import context, depthwise, narrow, onednn
from mm_vitbackbones.ops.kernels import depthwise as kernels
from mm_vitbackbones.ops.kernels.gelu import gelu_backward
from mm_vitbackbones.ops.once import once_differentiable


def linear(x: Tensor, layer: nn.Module, again: bool = False) -> Tensor:
    """``layer(x)`` of an ``nn.Linear``: (..., C) -> (..., C').

    Args:
        again: whether training on a CPU computes the result again instead of keeping it.
    """
    return by(x, layer) if context.device_type(x) == "cuda" else onednn.linear(x, layer, again)


def by(x: Tensor, layer: nn.Module) -> Tensor:
    """``layer(x)`` of an ``nn.Linear``, without oneDNN's operator."""
    if trains_on_cuda(x, layer):
        return _Linear.apply(x, layer.weight, layer.bias, _dtype(x))
    return layer(x)


def several(x: Tensor, layers: Sequence[nn.Module]) -> tuple[Tensor, ...]:
    """``linear(x, layer)`` of each. In training on CUDA they are one product."""
    if all(trains_on_cuda(x, layer, biased=False) for layer in layers):
        parameters = [getattr(layer, name) for name in ("weight", "bias") for layer in layers]
        if len({parameter.dtype for parameter in parameters if parameter is not None}) == 1:
            return _Several.apply(x, _dtype(x), *parameters)
    return tuple([linear(x, layer) for layer in layers])


def feed_forward(x: Tensor, fc1: nn.Module, fc2: nn.Module) -> Tensor:
    """``fc2(gelu(fc1(x)))``: (..., C) -> (..., C')."""
    if trains_on_cuda(x, fc1) and trains_on_cuda(x, fc2):
        return _FeedForward.apply(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias, _dtype(x))
    hidden = onednn.linear_gelu(x, fc1)
    context.release(x)
    return onednn.linear(hidden, fc2)


def mix_feed_forward(grid: Tensor, fc1: nn.Module, conv: nn.Module, fc2: nn.Module, relu: bool = False) -> Tensor:
    """``fc2(gelu(conv(fc1(grid))))`` with a depthwise convolution, and with a ReLU after fc1 if asked for:
    (B, H, W, C) -> (B, H, W, C')."""
    trains = not relu and trains_on_cuda(grid, fc1) and trains_on_cuda(grid, fc2)
    if trains and conv.bias is not None and depthwise.serves(grid, [conv], fc1):
        parameters = [getattr(part, name) for part in (fc1, conv, fc2) for name in ("weight", "bias")]
        return _MixFeedForward.apply(grid, *parameters, _dtype(grid))
    hidden = onednn.linear_relu(grid, fc1) if relu else linear(grid, fc1)
    context.release(grid)
    hidden = onednn.conv_gelu(hidden, conv)  # the name frees the map before
    return linear(hidden, fc2)


def gated_feed_forward(x: Tensor, gate: nn.Module, value: nn.Module, out: nn.Module) -> Tensor:
    """``out(silu(gate(x)) * value(x))``: (..., C) -> (..., C')."""
    hidden, factor = linear(x, gate), linear(x, value)
    context.release(x)
    trains = torch.is_grad_enabled() and context.is_eager()
    return linear(_Gated.apply(hidden, factor) if trains else F.silu(hidden) * factor, out)


def over_tiles(grid: Tensor, conv: nn.Module) -> Tensor:
    """A convolution whose patches are side by side, as a linear map of them, where ``trains_on_cuda``:
    (B, H, W, C) -> (B, H // r, W // r, O) with patches of r x r. A remainder of rows or columns is left out."""
    return _LinearOfTiles.apply(grid, conv.weight, conv.bias, _dtype(grid))


def trains_on_cuda(x: Tensor, layer: nn.Module, biased: bool = True) -> bool:
    """Whether a linear map takes its gradients from here: a plain one, in eager mode on CUDA, of parameters that are in
    the type of the computation, or in fp32 under autocast.

    Args:
        biased: whether it must have a bias.
    """
    if not (torch.is_grad_enabled() and context.is_eager_on_cuda(x) and context.is_plain(layer)):
        return False
    weight, bias = cast(Tensor, layer.weight), cast("Tensor | None", layer.bias)
    if biased and bias is None:
        return False
    return x.numel() > 0 and weight.dtype in (_dtype(x), torch.float32) and _is_right(x, weight)


def _is_right(x: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch would take this pair of types."""
    return x.dtype == weight.dtype or context.autocast_dtype(x.device) is not None


def _dtype(x: Tensor) -> torch.dtype:
    return context.autocast_dtype(x.device) or x.dtype


class _Linear(torch.autograd.Function):
    """x weight' + bias, in a type that may be narrower than that of the parameters."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        narrow_weight = narrow.of(weight, dtype)
        ctx.dtypes = x.dtype, weight.dtype, bias.dtype
        x = x.to(dtype)
        ctx.save_for_backward(x, narrow_weight)
        return F.linear(x, narrow_weight, narrow.of(bias, dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        shape, grad, x = x.shape, grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        return (
            (grad @ weight).view(shape).to(ctx.dtypes[0]) if of_x else None,
            _product(grad.t(), x, ctx.dtypes[1]) if of_weight else None,
            column_sums(grad, ctx.dtypes[2]) if of_bias else None,
            None,
        )


class _Several(torch.autograd.Function):
    """``_Linear`` of several weights and as many biases, some of which may be None; all have one type."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype, *parameters: Tensor | None) -> tuple[Tensor, ...]:
        count = len(parameters) // 2
        weights, biases = cast("tuple[Tensor, ...]", parameters[:count]), parameters[count:]
        ctx.sizes = [len(weight) for weight in weights]
        ctx.dtypes = x.dtype, weights[0].dtype
        x = x.to(dtype)
        weight = torch.cat([narrow.of(weight, dtype) for weight in weights])
        ctx.save_for_backward(x, weight)
        if all(bias is None for bias in biases):
            return F.linear(x, weight).split_with_sizes(ctx.sizes, dim=-1)
        pairs = zip(biases, ctx.sizes, strict=True)
        bias = torch.cat([x.new_zeros(size) if bias is None else narrow.of(bias, dtype) for bias, size in pairs])
        return F.linear(x, weight, bias).split_with_sizes(ctx.sizes, dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        of_x, _, *needed = ctx.needs_input_grad
        shape, grad, x = x.shape, torch.cat(grads, dim=-1).flatten(0, -2), x.reshape(-1, x.shape[-1])
        of_weights: Sequence[Tensor | None] = [None] * len(grads)
        of_biases = of_weights
        if any(needed[: len(grads)]):
            of_weights = _product(grad.t(), x, ctx.dtypes[1]).split_with_sizes(ctx.sizes)
        if any(needed[len(grads) :]):
            of_biases = column_sums(grad, ctx.dtypes[1]).split_with_sizes(ctx.sizes)
        pairs = zip((*of_weights, *of_biases), needed, strict=True)
        of_parameters = [gradient if wanted else None for gradient, wanted in pairs]
        return (grad @ weight).view(shape).to(ctx.dtypes[0]) if of_x else None, None, *of_parameters


class _LinearOfTiles(torch.autograd.Function):
    """``_Linear`` of the tiles of a grid (B, H, W, C) by a weight (O, C, r, s)."""

    @staticmethod
    def forward(ctx: Any, grid: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        out, channels, down, right = weight.shape
        rows, columns = grid.shape[1] // down, grid.shape[2] // right
        tiles = torch.empty((len(grid), rows, columns, down, right, channels), dtype=dtype, device=grid.device)
        tiles.copy_(_tiles(grid, tiles.shape))
        narrow_weight = torch.empty((out, down, right, channels), dtype=dtype, device=grid.device)
        narrow_weight.copy_(weight.permute(0, 2, 3, 1))
        tiles, narrow_weight = tiles.flatten(3), narrow_weight.flatten(1)
        ctx.save_for_backward(tiles, narrow_weight)
        ctx.shapes, ctx.dtypes = (grid.shape, weight.shape), (grid.dtype, weight.dtype, bias.dtype)
        return F.linear(tiles, narrow_weight, narrow.of(bias, dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        tiles, weight = ctx.saved_tensors
        shape, (out, channels, down, right) = ctx.shapes
        grad, of_grid, of_weight = grad.reshape(-1, out), None, None
        if ctx.needs_input_grad[0]:
            of_tiles = (grad @ weight).view(*tiles.shape[:3], down, right, channels)
            whole = of_tiles.shape[1] * down == shape[1] and of_tiles.shape[2] * right == shape[2]
            make = torch.empty if whole else torch.zeros
            of_grid = make(shape, dtype=ctx.dtypes[0], device=grad.device)
            _tiles(of_grid, of_tiles.shape).copy_(of_tiles)
        if ctx.needs_input_grad[1]:
            of_weight = _product(grad.t(), tiles.flatten(0, 2), ctx.dtypes[1])
            of_weight = of_weight.view(out, down, right, channels).permute(0, 3, 1, 2).contiguous()
        return of_grid, of_weight, column_sums(grad, ctx.dtypes[2]) if ctx.needs_input_grad[2] else None, None


def _tiles(grid: Tensor, shape: torch.Size) -> Tensor:
    """The tiles of a grid, as a view (B, h, w, r, s, C)."""
    _, rows, columns, down, right, _ = shape
    whole = grid[:, : rows * down, : columns * right]
    return whole.unflatten(2, (columns, right)).unflatten(1, (rows, down)).transpose(2, 3)


class _FeedForward(torch.autograd.Function):
    """gelu(x weight1' + bias1) weight2' + bias2. The activation is computed again in the pass of its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, dtype: torch.dtype
    ) -> Tensor:
        ctx.dtypes = [x.dtype, *(parameter.dtype for parameter in (weight1, bias1, weight2, bias2))]
        x = x.to(dtype)
        narrow1, narrow2 = narrow.of(weight1, dtype), narrow.of(weight2, dtype)
        hidden = F.linear(x, narrow1, narrow.of(bias1, dtype))
        ctx.save_for_backward(x, hidden, narrow1, narrow2)
        return F.linear(F.gelu(hidden), narrow2, narrow.of(bias2, dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, hidden, weight1, weight2 = ctx.saved_tensors
        of_x, of_weight1, of_bias1, of_weight2, of_bias2, _ = ctx.needs_input_grad
        dtypes = ctx.dtypes
        shape, grad, x = x.shape, grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        grad_hidden, activation, sums = gelu_backward(grad @ weight2, hidden.view(-1, hidden.shape[-1]))
        return (
            (grad_hidden @ weight1).view(shape).to(dtypes[0]) if of_x else None,
            _product(grad_hidden.t(), x, dtypes[1]) if of_weight1 else None,
            sums.to(dtypes[2]) if of_bias1 else None,
            _product(grad.t(), activation, dtypes[3]) if of_weight2 else None,
            column_sums(grad, dtypes[4]) if of_bias2 else None,
            None,
        )


class _Gated(torch.autograd.Function):
    """silu(gate) * value, which keeps these two alone."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(gate, value)
        return F.silu(gate) * value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        gate, value = ctx.saved_tensors
        share = torch.sigmoid(gate)
        activation = gate * share
        of_gate = grad * value * (share + activation * (1 - share))
        return of_gate, grad * activation


class _MixFeedForward(torch.autograd.Function):
    """gelu(conv(x weight1' + bias1)) weight2' + bias2. The activation is computed again in the pass of its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        window: Tensor,
        bias: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.dtypes = [x.dtype, *(parameter.dtype for parameter in (weight1, bias1, weight2, bias2))]
        x = x.to(dtype)
        narrow1, narrow2 = narrow.of(weight1, dtype), narrow.of(weight2, dtype)
        hidden = F.linear(x, narrow1, narrow.of(bias1, dtype))
        activation = kernels.depthwise(hidden, [window], [bias], True, False)
        ctx.save_for_backward(x, hidden, narrow1, window, bias, narrow2)
        return F.linear(activation, narrow2, narrow.of(bias2, dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, hidden, weight1, window, bias, weight2 = ctx.saved_tensors
        needed, dtypes, width = ctx.needs_input_grad, ctx.dtypes, hidden.shape[-1]
        shape, grad, x = x.shape, grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        of_conv, activation, of_window, of_bias = kernels.depthwise_gelu_slopes(
            (grad @ weight2).view_as(hidden), hidden, window, bias
        )
        of_weight2 = _product(grad.t(), activation.view(-1, width), dtypes[3]) if needed[5] else None
        del activation  # so that the memory of three of these maps is enough
        of_hidden = kernels.depthwise_transposed(of_conv, window).view(-1, width)
        del of_conv
        return (
            (of_hidden @ weight1).view(shape).to(dtypes[0]) if needed[0] else None,
            _product(of_hidden.t(), x, dtypes[1]) if needed[1] else None,
            column_sums(of_hidden, dtypes[2]) if needed[2] else None,
            of_window if needed[3] else None,
            of_bias if needed[4] else None,
            of_weight2,
            column_sums(grad, dtypes[4]) if needed[6] else None,
            None,
        )


def column_sums(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """(rows, C) -> (C,). On CUDA by a product with ones: PyTorch reduces many rows of few columns in several times what
    reading them takes."""
    if matrix.is_cuda and matrix.dtype != dtype and _HAS_WIDE_PRODUCTS:
        return _product(_ones(matrix), matrix, dtype).view(-1)
    return matrix.sum(0, dtype=dtype)


def _ones(matrix: Tensor) -> Tensor:
    """(1, rows), of a buffer that is kept: filling it takes as long as many of the products."""
    rows, device = matrix.shape[0], matrix.device
    if torch.cuda.is_current_stream_capturing():  # a graph's own memory must not be kept
        return matrix.new_ones(1, rows)
    key = matrix.dtype, device, torch.cuda.current_stream(device).cuda_stream
    buffer = _kept_ones.get(key)
    if buffer is None or buffer.shape[1] < rows:
        with torch.inference_mode(False):
            buffer = _kept_ones[key] = torch.ones(1, rows, dtype=matrix.dtype, device=device)
    return buffer[:, :rows]


_kept_ones: dict[Any, Tensor] = {}


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """``a @ b`` in a type that may be wider than theirs, without a pass to cast it where PyTorch can."""
    if a.dtype == dtype:
        return a @ b
    if a.is_cuda and _HAS_WIDE_PRODUCTS and dtype == torch.float32:
        return torch.mm(a, b, out_dtype=dtype)
    return (a @ b).to(dtype)


_HAS_WIDE_PRODUCTS = hasattr(torch.ops.aten.mm, "dtype")
