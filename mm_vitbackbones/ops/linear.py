"""Linear maps and feed-forward networks, by device.

In fp32 inference on a CPU these are oneDNN's fused operators (``ops.onednn``). In training on CUDA they are functions
whose gradients come in the parameters' own type, without casts, and whose biases' gradients take no slow pass of their
own. Everywhere else the modules are called one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.ops import bias_sums, context, depthwise, memory, narrow, onednn
from mm_vitbackbones.ops.chained import Forked, Pending, finished, then
from mm_vitbackbones.ops.kernels import depthwise as kernels
from mm_vitbackbones.ops.kernels.gelu import gelu_backward_
from mm_vitbackbones.ops.once import direct, once_differentiable, typed


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
        return layer(finished(x))
    if isinstance(x, Forked):
        return then(x, _Linear, *found)[0]
    return _linear(x, *found) if torch.is_grad_enabled() else mapped(x, *found)


def begun(x: Tensor, layer: nn.Module) -> Tensor | Pending:
    """``linear``; in training on CUDA, the call that gives it."""
    if torch.is_grad_enabled() and (found := on_cuda(x, layer, biased=True)) is not None:
        return Pending(_Linear, (x, *found))
    return linear(x, layer)


def to_heads(x: Tensor, layer: nn.Module, count: int, num_heads: int) -> tuple[Tensor, ...] | None:
    """``layer(x)`` of tokens, split into ``count`` maps and these into heads: (B, ..., C) -> each (B, h, N, d), where N
    are all tokens of an entry. None where this is not the form: elsewhere than in eager mode on CUDA, and without a
    bias."""
    if (found := on_cuda(x, layer)) is None or found[1] is None:
        return None
    weight, bias, dtype = found
    return to_heads_by(x, weight, bias, dtype, count, num_heads)


def to_heads_by(
    x: Tensor | Forked, weight: Tensor, bias: Tensor, dtype: torch.dtype, count: int, num_heads: int
) -> tuple[Tensor, ...]:
    """``to_heads`` by the parameters of a layer that is ``on_cuda``."""
    if torch.is_grad_enabled():
        return then(x, ToHeads, weight, bias, dtype, count, num_heads)
    x = finished(x)
    return split_heads(mapped(x.reshape(-1, x.shape[-1]), weight, bias, dtype), x.shape[0], count, num_heads)


def of_heads(heads: Tensor, layer: nn.Module, shape: Sequence[int]) -> Tensor | None:
    """``layer`` of the channels of all heads together: (B, h, N, d) -> (*shape, C'). None as for ``to_heads``."""
    if (found := on_cuda(heads, layer)) is None or found[1] is None:
        return None
    weight, bias, dtype = found
    return finished(of_heads_by(heads, weight, bias, dtype, shape))


def of_heads_by(
    heads: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype, shape: Sequence[int]
) -> Tensor | Pending:
    """``of_heads`` by the parameters of a layer that is ``on_cuda``; in training, the call that gives it."""
    if torch.is_grad_enabled():
        return Pending(_OfHeads, (heads, weight, bias, dtype, shape))
    rows = join_heads((heads,), heads.shape[1] * heads.shape[3])
    return mapped(rows, weight, bias, dtype).view(*shape, -1)


def feed_forward(x: Tensor, fc1: nn.Module, fc2: nn.Module) -> Tensor:
    """``fc2(gelu(fc1(x)))``: (..., C) -> (..., C')."""
    if (found := on_cuda(x, fc1, fc2)) is not None:
        weight1, bias1, weight2, bias2, dtype = found
        if not torch.is_grad_enabled():
            return mapped(F.gelu(mapped(x, weight1, bias1, dtype)), weight2, bias2, dtype)
        if bias1 is not None and bias2 is not None:
            return _feed_forward(x, *found)
    hidden = bias_sums.linear_gelu(x, fc1) if bias_sums.serves_gelu(x, fc1) else onednn.linear_gelu(x, fc1)
    context.release(x)
    return onednn.linear(hidden, fc2)


def mix_feed_forward(grid: Tensor, fc1: nn.Module, conv: nn.Module, fc2: nn.Module, relu: bool = False) -> Tensor:
    """``fc2(gelu(conv(fc1(grid))))`` with a depthwise convolution, and with a ReLU after fc1 if asked for:
    (B, H, W, C) -> (B, H, W, C')."""
    found = None if relu else on_cuda(grid, fc1, fc2)
    if found is not None and depthwise.serves(grid, [conv], fc1):
        weight1, bias1, weight2, bias2, dtype = found
        weights, biases = depthwise.parameters_of([conv])
        if not torch.is_grad_enabled():
            hidden = kernels.depthwise(mapped(grid, weight1, bias1, dtype), weights, biases, True, False)
            return mapped(hidden, weight2, bias2, dtype)
        if biases and bias1 is not None and bias2 is not None:
            return _mix_feed_forward(grid, weight1, bias1, *weights, *biases, weight2, bias2, dtype)
    hidden = onednn.linear_relu(grid, fc1) if relu else linear(grid, fc1)
    context.release(grid)
    hidden = onednn.conv_gelu(hidden, conv)  # the name frees the map before
    return linear(hidden, fc2)


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
        hidden = mapped(x, weight1, bias1, self.dtype)  # is freed before the second map
        hidden = kernels.depthwise(hidden, window[:1], window[1:], True, False) if window else F.gelu(hidden)
        return mapped(hidden, weight2, bias2, self.dtype)


def network_on_cuda(x: Tensor, parts: Parts) -> Network | None:
    """The network with these parts in eager mode on CUDA, if all maps have biases and nothing is attached to them.

    Args:
        x: of the sizes and the type of what the network takes; the kernels are the form for it, see ``norm.is_for``.
    """
    fc1, fc2, conv = parts
    found = on_cuda(x, fc1, fc2, biased=True, known=True)
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
    hidden, factor = linear(x, gate), linear(x, value)
    context.release(x)
    trains = torch.is_grad_enabled() and context.is_eager()
    return linear(_gated(hidden, factor) if trains else F.silu(hidden) * factor, out)


def over_tiles(grid: Tensor, conv: nn.Module) -> Tensor:
    """A convolution whose patches are side by side, as a linear map of them, where ``trains_on_cuda``:
    (B, H, W, C) -> (B, H // r, W // r, O) with patches of r x r. A remainder of rows or columns is left out."""
    return _linear_of_tiles(grid, conv.weight, conv.bias, _dtype(grid))


def trains_on_cuda(x: Tensor, layer: nn.Module, biased: bool = True) -> bool:
    """Whether a linear map takes its gradients from here: a plain one, in eager mode on CUDA, of parameters that are in
    the type of the computation, or in fp32 under autocast.

    Args:
        biased: whether it must have a bias.
    """
    found = on_cuda(x, layer) if torch.is_grad_enabled() else None
    return found is not None and not (biased and found[1] is None)


def on_cuda(x: Tensor | Forked, *layers: nn.Module, biased: bool = False, known: bool = False) -> list[Any] | None:
    """Of each linear map its weight and bias (or None), then the type of the computation: where these may take the
    place of calls, in eager mode on CUDA; see ``trains_on_cuda``.

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
        if weight.dtype != dtype and (narrow_type is None or weight.dtype != torch.float32):
            return None  # without autocast PyTorch would not take a pair of types
        if biased and bias is None:
            return None
        found += weight, bias
    found.append(dtype)
    return found


def _dtype(x: Tensor) -> torch.dtype:
    return context.autocast_dtype(x.device) or x.dtype


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
        typed(torch.mm(grad, weight), dtypes[0]) if needed[0] else None,
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


class ToHeads(torch.autograd.Function):
    """See ``to_heads``. The results are views of one map: no copy, and one gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype, count: int, num_heads: int
    ) -> tuple[Tensor, ...]:
        ctx.shape = shape = x.shape
        out = mapped_in(ctx, x, weight, bias, dtype)
        ctx.width = out.shape[1] // count
        return split_heads(out, shape[0], count, num_heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        of_x, of_weight, of_bias = gradients(ctx, join_heads(grads, ctx.width))
        return None if of_x is None else of_x.view(ctx.shape), of_weight, of_bias, None, None, None


class _OfHeads(torch.autograd.Function):
    """See ``of_heads``."""

    @staticmethod
    def forward(
        ctx: Any, heads: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype, shape: Sequence[int]
    ) -> Tensor:
        batch, num_heads, tokens, dim = heads.shape
        ctx.shape = batch, tokens, num_heads, dim
        return mapped_in(ctx, join_heads((heads,), num_heads * dim), weight, bias, dtype).view(*shape, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        of_rows, of_weight, of_bias = gradients(ctx, grad.reshape(-1, grad.shape[-1]))
        of_heads = None if of_rows is None else of_rows.view(ctx.shape).transpose(1, 2)
        return of_heads, of_weight, of_bias, None, None


def split_heads(rows: Tensor, batch: int, count: int, num_heads: int) -> tuple[Tensor, ...]:
    """Views: (B * N, count * C) -> ``count`` of (B, h, N, d)."""
    if count == 1:
        return (rows.view(batch, -1, num_heads, rows.shape[1] // num_heads).transpose(1, 2),)
    return rows.view(batch, -1, count, num_heads, rows.shape[1] // (count * num_heads)).permute(2, 0, 3, 1, 4).unbind()


def heads_of(qkv: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    """Views: queries, keys and values in one, (B, N, 3C) -> three of (B, h, N, d). See ``split_heads`` for rows."""
    return qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()


def join_heads(heads: Sequence[Tensor], width: int, dim: int = 1) -> Tensor:
    """The inverse of ``split_heads``: ``count`` of (B, h, N, d) -> (B * N, count * C) with C = ``width``. PyTorch's
    attention gives gradients in the memory of tokens, so that the rows of each are a view.

    Args:
        dim: 0: the rows of each come one after the other.
    """
    if len(heads) == 1:
        return heads[0].transpose(1, 2).reshape(-1, width)
    joined = torch.cat([x.transpose(1, 2) for x in heads], 2 * dim)
    return joined.reshape(-1, width if dim == 0 else len(heads) * width)


class _LinearOfTiles(torch.autograd.Function):
    """``_Linear`` of the tiles of a grid (B, H, W, C) by a weight (O, C, r, s).

    In the memory of a grid, a tile has the order (r, s, C), for which the weight is copied, and its gradient back.
    Where the grid is a view of maps, such as an image, a tile is taken in the order of the weight.
    """

    @staticmethod
    def forward(ctx: Any, grid: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.shapes, ctx.dtypes = (grid.shape, weight.shape), (grid.dtype, weight.dtype, bias.dtype)
        ctx.of_maps = of_maps = grid.stride(3) > grid.stride(2)
        tiles = in_tiles(grid, weight.shape)
        shape = *tiles.shape[:3], weight.shape[0]
        if of_maps:
            rows = _packed(tiles.permute(0, 1, 2, 5, 3, 4), dtype).view(-1, weight[0].numel())
            weight = narrow.of(weight, dtype).reshape(weight.shape[0], -1)
        else:
            rows, weight = tiles_of(tiles, dtype), weight_of_tiles(weight, dtype)
        ctx.save_for_backward(rows, weight)
        return F.linear(rows, weight, narrow.of(bias, dtype)).view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        rows, weight = ctx.saved_tensors
        needed, of_maps, dtypes, (shape, shape_of_weight) = ctx.needs_input_grad, ctx.of_maps, ctx.dtypes, ctx.shapes
        places, (channels, *window) = grad.shape[:3], shape_of_weight[1:]
        grad, of_grid, of_weight = grad.reshape(-1, grad.shape[3]), None, None
        if needed[0]:
            of_rows = torch.mm(grad, weight)
            if of_maps:
                of_tiles = of_rows.view(*places, channels, *window).permute(0, 1, 2, 4, 5, 3)
            else:
                of_tiles = of_rows.view(*places, *window, channels)
            if (places[1] * window[0], places[2] * window[1]) == shape[1:3]:
                of_grid = _packed(of_tiles.transpose(2, 3), dtypes[0]).view(shape)
            else:
                of_grid = torch.zeros(shape, dtype=dtypes[0], device=grad.device)
                in_tiles(of_grid, shape_of_weight).copy_(of_tiles)
        if needed[1] and of_maps:
            of_weight = product(grad.t(), rows, dtypes[1]).view(shape_of_weight)
        elif needed[1]:
            of_weight = of_weight_of_tiles(grad, rows, shape_of_weight, dtypes[1])
        return of_grid, of_weight, column_sums(grad, dtypes[2]) if needed[2] else None, None


def in_tiles(grid: Tensor, window: Sequence[int]) -> Tensor:
    """The tiles of a grid as a view: (B, H, W, C) -> (B, h, w, r, s, C). A remainder of rows or columns is left out.

    Args:
        window: the shape of a weight (O, C, r, s).
    """
    batch, height, width, channels = grid.shape
    down, right = window[2:]
    rows, columns = height // down, width // right
    if (rows * down, columns * right) != (height, width):
        grid = grid[:, : rows * down, : columns * right]
    return grid.view(batch, rows, down, columns, right, channels).transpose(2, 3)


def tiles_of(tiles: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows that a weight of tiles is for, in a type: (B, h, w, r, s, C) -> (B * h * w, r * s * C)."""
    _, _, _, down, right, channels = tiles.shape
    return _packed(tiles, dtype).view(-1, down * right * channels)


def weight_of_tiles(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """(O, C, r, s) -> (O, r * s * C), in a type."""
    return _packed(weight.permute(0, 2, 3, 1), dtype).view(weight.shape[0], -1)


def of_weight_of_tiles(grad: Tensor, tiles: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The gradient of the weight (O, C, r, s) in a type, from that of the results (R, O)."""
    out, channels, down, right = shape
    return product(grad.t(), tiles, dtype).view(out, down, right, channels).permute(0, 3, 1, 2).contiguous()


def _packed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """In contiguous memory, and in a type: one pass."""
    return x.contiguous() if x.dtype == dtype else x.to(dtype, memory_format=torch.contiguous_format)


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
            of_weight1 = product(grad_hidden.t(), x.view(-1, x.shape[-1]), dtypes[1])
        return (
            typed(torch.mm(grad_hidden, weight1), dtypes[0]).view(ctx.shape) if of_x else None,
            of_weight1,
            typed(sums, dtypes[2]) if of_bias1 else None,
            product(grad.t(), activation, dtypes[3]) if of_weight2 else None,
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
        of_weight2 = product(grad.t(), activation.view(-1, width), dtypes[3]) if needed[5] else None
        del activation  # so that the memory of three of these maps is enough
        of_hidden = kernels.depthwise_transposed(of_conv, window).view(-1, width)
        del of_conv
        return (
            typed(torch.mm(of_hidden, weight1), dtypes[0]).view(shape) if needed[0] else None,
            product(of_hidden.t(), x, dtypes[1]) if needed[1] else None,
            column_sums(of_hidden, dtypes[2]) if needed[2] else None,
            of_window if needed[3] else None,
            of_bias if needed[4] else None,
            of_weight2,
            column_sums(grad, dtypes[4]) if needed[6] else None,
            None,
        )


_linear, _linear_of_tiles = direct(_Linear), direct(_LinearOfTiles)
_feed_forward, _gated, _mix_feed_forward = map(direct, (_FeedForward, _Gated, _MixFeedForward))


def column_sums(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """(rows, C) -> (C,). On CUDA by a product with ones: PyTorch reduces many rows of few columns in several times what
    reading them takes."""
    if matrix.is_cuda and matrix.dtype != dtype and _HAS_WIDE_PRODUCTS:
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
    if a.is_cuda and _HAS_WIDE_PRODUCTS and dtype == torch.float32:
        return torch.mm(a, b, out_dtype=dtype)
    return torch.mm(a, b).to(dtype)


_HAS_WIDE_PRODUCTS = hasattr(torch.ops.aten.mm, "dtype")
