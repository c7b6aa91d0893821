"""Feed-forward networks, by device: linear maps with an activation in between, and with a depthwise convolution.

In fp32 inference on a CPU they are oneDNN's fused operators (``ops.onednn``). In training on CUDA each is one function,
which computes its activation again in the pass of its gradient. Everywhere else the modules are called one after the
other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.ops import bias_sums, context, depthwise, linear, memory, narrow, onednn
from mm_vitbackbones.ops.kernels import depthwise as kernels
from mm_vitbackbones.ops.kernels.gelu import gelu_backward_
from mm_vitbackbones.ops.once import direct, once_differentiable, typed


def feed_forward(x: Tensor, fc1: nn.Module, fc2: nn.Module) -> Tensor:
    """``fc2(gelu(fc1(x)))``: (..., C) -> (..., C')."""
    if (found := linear.on_cuda(x, fc1, fc2)) is not None:
        weight1, bias1, weight2, bias2, dtype = found
        if not torch.is_grad_enabled():
            return linear.mapped(F.gelu(linear.mapped(x, weight1, bias1, dtype)), weight2, bias2, dtype)
        if bias1 is not None and bias2 is not None:
            return _feed_forward(x, *found)
    hidden = bias_sums.linear_gelu(x, fc1) if bias_sums.serves_gelu(x, fc1) else onednn.linear_gelu(x, fc1)
    context.release(x)
    return linear.linear(hidden, fc2)


def mix_feed_forward(grid: Tensor, fc1: nn.Module, conv: nn.Module, fc2: nn.Module, relu: bool = False) -> Tensor:
    """``fc2(gelu(conv(fc1(grid))))`` with a depthwise convolution, and with a ReLU after fc1 if asked for:
    (B, H, W, C) -> (B, H, W, C')."""
    found = None if relu else linear.on_cuda(grid, fc1, fc2)
    if found is not None and depthwise.serves(grid, [conv], fc1):
        weight1, bias1, weight2, bias2, dtype = found
        weights, biases = depthwise.parameters_of([conv])
        if not torch.is_grad_enabled():
            hidden = kernels.depthwise(linear.mapped(grid, weight1, bias1, dtype), weights, biases, True, False)
            return linear.mapped(hidden, weight2, bias2, dtype)
        if biases and bias1 is not None and bias2 is not None:
            return _mix_feed_forward(grid, weight1, bias1, *weights, *biases, weight2, bias2, dtype)
    if relu and not context.is_eager_on_cuda(grid):
        hidden = onednn.linear_relu(grid, fc1)
    else:
        hidden = linear.linear(grid, fc1)
        hidden = F.relu(hidden) if relu else hidden
    context.release(grid)
    hidden = onednn.conv_gelu(hidden, conv)  # the name frees the map before
    return linear.linear(hidden, fc2)


class Parts(NamedTuple):
    """Of a feed-forward network: ``fc2(gelu(fc1(x)))``, or with a depthwise convolution ``fc2(gelu(conv(fc1(x))))``."""

    fc1: nn.Module
    fc2: nn.Module
    conv: nn.Module | None = None


class Network(NamedTuple):
    """A feed-forward network as it is computed on CUDA, by functions of its parameters."""

    kind: Any
    """The autograd function of x, the parameters and the type; ``keeps_sources``: of an x that is ``memory.made``."""
    parameters: list[Tensor]
    dtype: torch.dtype
    """Of the computation."""

    def inferred(self, x: Tensor) -> Tensor:
        """The result without a gradient: (..., C) -> (..., C')."""
        weight1, bias1, *window, weight2, bias2 = self.parameters
        hidden = linear.mapped(x, weight1, bias1, self.dtype)  # is freed before the second map
        hidden = kernels.depthwise(hidden, window[:1], window[1:], True, False) if window else F.gelu(hidden)
        return linear.mapped(hidden, weight2, bias2, self.dtype)


def network_on_cuda(x: Tensor, parts: Parts) -> Network | None:
    """The network with these parts in eager mode on CUDA, if all maps have biases and nothing is attached to them.

    Args:
        x: of the sizes and the type of what the network takes; the kernels are the form for it, see ``norm.is_for``.
    """
    fc1, fc2, conv = parts
    found = linear.on_cuda(x, fc1, fc2, biased=True, known=True)
    if found is None:
        return None
    if conv is None:
        return Network(_FeedForward, found[:4], found[4])
    if not depthwise.serves(x, [conv], fc1, known=True):
        return None
    (window,), bias = depthwise.parameters_of([conv])
    return Network(_MixFeedForward, [*found[:2], window, *bias, *found[2:4]], found[4]) if bias else None


def gated_feed_forward(x: Tensor, gate: nn.Module, value: nn.Module, out: nn.Module) -> Tensor:
    """``out(silu(gate(x)) * value(x))``: (..., C) -> (..., C')."""
    hidden, factor = linear.linear(x, gate), linear.linear(x, value)
    context.release(x)
    trains = torch.is_grad_enabled() and context.is_eager()
    return linear.linear(_gated(hidden, factor) if trains else F.silu(hidden) * factor, out)


class _FeedForward(torch.autograd.Function):
    """gelu(x weight1' + bias1) weight2' + bias2. The activation is computed again in the pass of its gradient."""

    keeps_sources = True

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, dtype: torch.dtype
    ) -> Tensor | None:
        ctx.dtypes = x.dtype, weight1.dtype, bias1.dtype, weight2.dtype, bias2.dtype
        ctx.shape = shape = x.shape
        narrow1, narrow2 = narrow.of(weight1, dtype), narrow.of(weight2, dtype)
        ctx.again, sources = memory.sources_of(x)  # of a norm
        x = typed(x.reshape(-1, shape[-1]), dtype)
        hidden = F.linear(x, narrow1, narrow.of(bias1, dtype))
        ctx.save_for_backward(hidden, narrow1, narrow2, *(sources or (x,)))
        if not getattr(ctx, "wants_result", True):  # only a `Context` has it
            return None
        return F.linear(F.gelu(hidden), narrow2, narrow.of(bias2, dtype)).view(*shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        hidden, weight1, weight2, *kept = ctx.saved_tensors
        of_x, needs_weight1, of_bias1, of_weight2, of_bias2, _ = ctx.needs_input_grad
        dtypes, grad = ctx.dtypes, grad.reshape(-1, grad.shape[-1])
        grad_hidden = torch.mm(grad, weight2)
        activation, sums = gelu_backward_(grad_hidden, hidden)
        of_weight1 = None
        if needs_weight1:
            x = kept[0] if ctx.again is None else ctx.again(*kept)
            of_weight1 = linear.product(grad_hidden.t(), x.view(-1, x.shape[-1]), dtypes[1])
        return (
            linear.product(grad_hidden, weight1, dtypes[0]).view(ctx.shape) if of_x else None,
            of_weight1,
            typed(sums, dtypes[2]) if of_bias1 else None,
            linear.product(grad.t(), activation, dtypes[3]) if of_weight2 else None,
            linear.column_sums(grad, dtypes[4]) if of_bias2 else None,
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

    keeps_sources = False

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
    ) -> Tensor | None:
        ctx.dtypes = x.dtype, weight1.dtype, bias1.dtype, weight2.dtype, bias2.dtype
        x = typed(x, dtype)
        narrow1, narrow2 = narrow.of(weight1, dtype), narrow.of(weight2, dtype)
        hidden = F.linear(x, narrow1, narrow.of(bias1, dtype))
        ctx.save_for_backward(x, hidden, narrow1, window, bias, narrow2)
        if not getattr(ctx, "wants_result", True):  # only a `Context` has it
            return None
        activation = kernels.depthwise(hidden, [window], [bias], True, False)
        return F.linear(activation, narrow2, narrow.of(bias2, dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, hidden, weight1, window, bias, weight2 = ctx.saved_tensors
        needed, dtypes, width = ctx.needs_input_grad, ctx.dtypes, hidden.shape[-1]
        shape, grad, x = x.shape, grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        of_conv, activation, of_window, of_bias = kernels.depthwise_gelu_slopes(
            torch.mm(grad, weight2).view(hidden.shape), hidden, window, bias
        )
        of_weight2 = linear.product(grad.t(), activation.view(-1, width), dtypes[3]) if needed[5] else None
        del activation  # so that the memory of three of these maps is enough
        of_hidden = kernels.depthwise_transposed(of_conv, window).view(-1, width)
        del of_conv
        return (
            linear.product(of_hidden, weight1, dtypes[0]).view(shape) if needed[0] else None,
            linear.product(of_hidden.t(), x, dtypes[1]) if needed[1] else None,
            linear.column_sums(of_hidden, dtypes[2]) if needed[2] else None,
            of_window if needed[3] else None,
            of_bias if needed[4] else None,
            of_weight2,
            linear.column_sums(grad, dtypes[4]) if needed[6] else None,
            None,
        )


_feed_forward, _gated, _mix_feed_forward = map(direct, (_FeedForward, _Gated, _MixFeedForward))
