"""Depthwise convolutions over grids with their bias, GELU and residual sum in one pass, and their gradients.

B images, H x W grid, C channels, k the side of a window. The channels of a grid may be split between several
convolutions, whose windows may differ: each reads its own channels of the grid and writes its own channels of the
result, so nothing is split or concatenated.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mm_vitbackbones.ops import context
from mm_vitbackbones.ops.kernels import registration
from mm_vitbackbones.ops.once import typed

SIDES = (3, 5, 7)
"""The windows that the kernels know."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""The types of grids that the kernels know; they compute in fp32."""

Windows = tuple[tuple[int, int], ...]
"""The channels and the side of each convolution of a grid."""


# ---- references


def reference(grid: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], gelu: bool, add: bool) -> Tensor:
    with context.autocast_to(grid.device, None):
        out = convolved(grid, weights, biases)
        out = F.gelu(out) if gelu else out
        return (grid + out if add else out).contiguous()


def backward_reference(
    grad: Tensor, grid: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], gelu: bool, add: bool
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    with context.autocast_to(grid.device, None):
        d = torch.ops.aten.gelu_backward(grad, convolved(grid, weights, biases)) if gelu else grad
        widths = [len(weight) for weight in weights]
        parts = zip(d.split(widths, -1), grid.split(widths, -1), weights, strict=True)
        grads = [gradients(*part) for part in parts]
        of_grid = _together([g[0] for g in grads], -1)
        of_grid = grad + of_grid if add else of_grid
    of_biases = [g[2].to(bias.dtype) for g, bias in zip(grads, biases, strict=False)]
    return of_grid.contiguous(), [g[1] for g in grads], of_biases


def slopes_reference(grad: Tensor, grid: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with context.autocast_to(grid.device, None):
        before = convolved(grid, [weight], [bias])
        d = torch.ops.aten.gelu_backward(grad, before)
        _, of_weight, of_bias = gradients(d, grid, weight)
        return d.contiguous(), F.gelu(before).contiguous(), of_weight, of_bias.to(bias.dtype)


def transposed_reference(grad: Tensor, weight: Tensor) -> Tensor:
    with context.autocast_to(grad.device, None):
        return convolved(grad, [weight.flip(2, 3)], ()).contiguous()


def rows_reference(rows: Tensor, shapes: Sequence[int], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    rows = rows.contiguous()
    out = torch.empty_like(rows)
    with context.autocast_to(rows.device, None):
        for i, (shape, first, last) in enumerate(levels_of(shapes)):
            grid, end = grid_of(rows, shape, first), last - shape[0]
            added = convolved(grid, weights[i : i + 1], biases[i : i + 1])
            torch.add(grid, added, out=grid_of(out, shape, first))
            out[end:last].copy_(rows[end:last])
    return out


def rows_backward_reference(
    grad: Tensor, rows: Tensor, shapes: Sequence[int], weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    grad, rows = grad.contiguous(), rows.contiguous()
    out = torch.empty_like(grad)
    of_weights: list[Tensor] = []
    of_biases: list[Tensor] = []
    with context.autocast_to(rows.device, None):
        for i, (shape, first, last) in enumerate(levels_of(shapes)):
            of_result, grid, of_rows = (grid_of(x, shape, first) for x in (grad, rows, out))
            of_grid, of_weight, of_bias = gradients(of_result, grid, weights[i])
            torch.add(of_result, of_grid, out=of_rows)
            out[last - shape[0] : last].copy_(grad[last - shape[0] : last])
            of_weights.append(of_weight)
            of_biases += [typed(of_bias, bias.dtype) for bias in biases[i : i + 1]]
    return out, of_weights, of_biases


def convolved(grid: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    parts = grid.permute(0, 3, 1, 2).split([len(weight) for weight in weights], dim=1)
    maps = []
    for i, (part, weight) in enumerate(zip(parts, weights, strict=True)):
        bias = biases[i].to(grid.dtype) if biases else None
        maps.append(F.conv2d(part, _narrow(weight, grid), bias, padding=weight.shape[-1] // 2, groups=len(weight)))
    return _together(maps, 1).permute(0, 2, 3, 1)


def _together(parts: Sequence[Tensor], dim: int) -> Tensor:
    # Of a single part, `cat` makes a copy.
    return parts[0] if len(parts) == 1 else torch.cat([*parts], dim)


def gradients(grad: Tensor, grid: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    maps, pad = (x.permute(0, 3, 1, 2) for x in (grad, grid)), [weight.shape[-1] // 2] * 2
    channels, once = len(weight), [1, 1]
    of_maps, of_weight, of_bias = torch.ops.aten.convolution_backward(
        *maps, _narrow(weight, grid), [channels], once, pad, once, False, [0, 0], channels, [True, True, True]
    )
    return of_maps.permute(0, 2, 3, 1), of_weight.flatten().view_as(weight).to(weight.dtype), of_bias


def _narrow(weight: Tensor, grid: Tensor) -> Tensor:
    # The same memory with channels-last strides, so that the convolution stays in this format.
    return weight.squeeze(1).unsqueeze(3).permute(0, 3, 1, 2).to(grid.dtype)


# ---- how a grid is split between programs


class Shape(NamedTuple):
    """What a program of a kernel has to do."""

    columns: int
    elements: tuple[int, int]
    """Of each thread, for 3x3 windows and for larger ones: a thread holds the weights of its channels in registers."""
    programs: int
    """That fill a card several times, so that it waits little for the last of them. So many bands are made of rows."""
    rows: int
    """The fewest of a band, which reads k - 1 more."""
    ahead: int
    """The rows that are requested before they are needed."""
    registers: int | None = None
    """The most of a thread, for 3x3 windows, where fewer than the compiler would take let more programs run at once."""


CONVOLVE = Shape(columns=8, elements=(4, 2), programs=4096, rows=8, ahead=2)
CORRELATE = Shape(columns=8, elements=(4, 2), programs=2048, rows=16, ahead=2)
CORRELATE_GELU = Shape(columns=4, elements=(4, 1), programs=2048, rows=16, ahead=1, registers=168)

BLOCKS = (128, 64, 32)
"""Of channels."""
WASTE = 1.2
"""A large block may compute so many times as many channels as the smallest would."""


def block_of(channels: int, side: int) -> int:
    """The block of channels. Larger windows, whose programs have more to do, take the smallest."""
    padded = [math.ceil(channels / block) * block for block in BLOCKS]
    most = WASTE * padded[-1] if side == 3 else 0
    return next((block for block, all in zip(BLOCKS, padded, strict=True) if all <= most), BLOCKS[-1])


@functools.lru_cache(maxsize=1024)
def bands_of(grid: tuple[int, ...], windows: Windows, shape: Shape) -> tuple[int, int]:
    """How many bands an image has, and the rows of each. All convolutions of a grid (B, H, W) have the same."""
    batch, height, width = grid
    blocks = sum(math.ceil(channels / block_of(channels, side)) for channels, side in windows)
    wanted = math.ceil(shape.programs / (batch * math.ceil(width / shape.columns) * blocks))
    rows = math.ceil(height / max(1, min(wanted, height // shape.rows)))
    return math.ceil(height / rows), rows


@functools.lru_cache(maxsize=1024)
def partial_sums(shape: Shape, grid: tuple[int, ...], windows: Windows) -> tuple[int, tuple[int, ...]]:
    """How many rows of partial sums there are, and the lengths in a row: of a weight, then its bias, and so on."""
    rows = grid[0] * bands_of(grid, windows, shape)[0] * math.ceil(grid[2] / shape.columns)
    return rows, tuple([size for channels, side in windows for size in (channels * side * side, channels)])


class _Step(NamedTuple):
    """The kernel of one convolution, as a launcher takes it: what does not depend on the values of tensors."""

    programs: tuple[int, int, int]
    numbers: tuple[int, ...]
    constants: tuple[Any, ...]
    warps: int
    registers: int | None


@functools.lru_cache(maxsize=1024)
def _steps(
    shape: Shape,
    grid: tuple[int, ...],
    strides: tuple[int, ...],
    windows: Windows,
    constants: tuple[bool, ...],
    partial: bool,
) -> list[_Step]:
    """One for each convolution.

    Args:
        grid: B, H and W.
        strides: those of B, H and W, of all grids that the kernel takes.
        constants: what the kernel takes between the side of the window and the split of the work.
        partial: whether it writes partial sums of the gradients of all convolutions, a weight and then its bias.
    """
    batch, height, width = grid
    bands = bands_of(grid, windows, shape)
    steps, start, length = [], 0, sum(channels * (side * side + 1) for channels, side in windows)
    for channels, side in windows:
        elements = shape.elements[side > 3]
        vector = math.gcd(elements, channels, *strides)
        block = block_of(channels, side)
        places = (length, start, start + channels * side * side) if partial else ()
        start += channels * (side * side + 1)
        step = _Step(
            programs=(batch * bands[0] * math.ceil(width / shape.columns) * math.ceil(channels / block), 1, 1),
            numbers=(height, width, channels // vector, *bands, *places, *[stride // vector for stride in strides]),
            constants=(side, *constants, vector, shape.ahead, shape.columns, block),
            warps=max(1, shape.columns * block // elements // 32),
            registers=shape.registers if side == 3 else None,
        )
        steps.append(step)
    return steps


def windows_of(weights: Sequence[Tensor]) -> Windows:
    """Those of convolutions by weights (C', 1, k, k)."""
    if len(weights) == 1:
        channels, _, _, side = weights[0].shape
        return ((channels, side),)
    return tuple([(shape[0], shape[3]) for shape in [weight.shape for weight in weights]])


def _served(grid: Tensor, windows: Windows) -> bool:
    return grid.dtype in DTYPES and grid.numel() > 0 and _known(windows)


@functools.lru_cache(maxsize=1024)
def _known(windows: Windows) -> bool:
    return all(side in SIDES for _, side in windows)


def _parts(grids: Sequence[Tensor], windows: Windows) -> list[tuple[Tensor, ...]]:
    """For each convolution its channels of the grids."""
    if len(windows) == 1:
        return [tuple(grids)]
    widths = [channels for channels, _ in windows]
    different = {id(grid): grid for grid in grids}  # one may be there twice
    parts = {key: grid.split_with_sizes(widths, -1) for key, grid in different.items()}
    return list(zip(*[parts[id(grid)] for grid in grids], strict=True))


def _with_channels_together(grid: Tensor) -> Tensor:
    return grid if grid.stride(3) == 1 else grid.contiguous()


# ---- launches

_START_CONVOLVE = registration.kernel("depthwise", "start_convolve")
_START_CORRELATE = registration.kernel("depthwise", "start_correlate")
_START_CORRELATE_GELU = registration.kernel("depthwise", "start_correlate_gelu")


def launch(grid: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], gelu: bool, add: bool) -> Tensor:
    windows = windows_of(weights)
    if not _served(grid, windows):
        return reference(grid, weights, biases, gelu, add)
    grid = _with_channels_together(grid)
    return _convolve(grid, grid if add else None, weights, windows, biases, gelu, flip=False)


def launch_backward(
    grad: Tensor, grid: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], gelu: bool, add: bool
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    windows = windows_of(weights)
    if not _served(grid, windows):
        return backward_reference(grad, grid, weights, biases, gelu, add)
    grad, grid = _with_channels_together(grad), _with_channels_together(grid)
    d, of_weights, of_biases = _correlate(grad, grid, weights, windows, biases, gelu)
    return _convolve(d, grad if add else None, weights, windows, (), False, flip=True), of_weights, of_biases


def launch_slopes(grad: Tensor, grid: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weights = (weight,)
    windows = windows_of(weights)
    if not _served(grid, windows):
        return slopes_reference(grad, grid, weight, bias)
    activation = torch.empty_like(grid, memory_format=torch.contiguous_format)
    grad, grid = _with_channels_together(grad), _with_channels_together(grid)
    d, (of_weight,), (of_bias,) = _correlate(grad, grid, weights, windows, (bias,), True, activation)
    return d, activation, of_weight, of_bias


def launch_of_rows(rows: Tensor, shapes: Sequence[int], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    if not _served(rows, windows_of(weights)):
        return rows_reference(rows, shapes, weights, biases)
    rows = rows.contiguous()
    out = torch.empty_like(rows)
    for i, (shape, first, last) in enumerate(levels_of(shapes)):
        weight, bias = weights[i : i + 1], biases[i : i + 1]
        grid, result = grid_of(rows, shape, first), grid_of(out, shape, first)
        _convolve(grid, grid, weight, windows_of(weight), bias, False, flip=False, out=result)
        out[last - shape[0] : last].copy_(rows[last - shape[0] : last])
    return out


def launch_of_rows_backward(
    grad: Tensor, rows: Tensor, shapes: Sequence[int], weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    if not _served(rows, windows_of(weights)):
        return rows_backward_reference(grad, rows, shapes, weights, biases)
    grad, rows = grad.contiguous(), rows.contiguous()
    out, of_weights, of_biases = torch.empty_like(grad), [], []
    for i, (shape, first, last) in enumerate(levels_of(shapes)):
        weight, bias = weights[i : i + 1], biases[i : i + 1]
        of_grid, grid, windows = grid_of(grad, shape, first), grid_of(rows, shape, first), windows_of(weight)
        _, of_weight, of_bias = _correlate(of_grid, grid, weight, windows, bias, False)
        of_weights += of_weight
        of_biases += of_bias
        _convolve(of_grid, of_grid, weight, windows, (), False, flip=True, out=grid_of(out, shape, first))
        out[last - shape[0] : last].copy_(grad[last - shape[0] : last])
    return out, of_weights, of_biases


def levels_of(shapes: Sequence[int]) -> list[tuple[tuple[int, int, int], int, int]]:
    """Of each level in rows: B, H and W, its first row, and the first row after it. A level has its grids first, then
    the class token of each: B * H * W + B rows.

    Args:
        shapes: B, H and W of the first level, then those of the next one, and so on.
    """
    levels, last = [], 0
    for i in range(0, len(shapes), 3):
        batch, height, width = shapes[i : i + 3]
        first, last = last, last + batch * (height * width + 1)
        levels.append(((batch, height, width), first, last))
    return levels


def grid_of(rows: Tensor, shape: tuple[int, int, int], first: int = 0) -> Tensor:
    """The grids in rows of C channels, from row ``first`` on, as a view (B, H, W, C)."""
    batch, height, width = shape
    channels = rows.shape[1]
    offset = rows.storage_offset() + first * channels
    sizes, strides = (batch, height, width, channels), (height * width * channels, width * channels, channels, 1)
    return rows.as_strided(sizes, strides, offset)


def launch_transposed(grad: Tensor, weight: Tensor) -> Tensor:
    weights = (weight,)
    windows = windows_of(weights)
    if not _served(grad, windows):
        return transposed_reference(grad, weight)
    return _convolve(_with_channels_together(grad), None, weights, windows, (), False, flip=True)


def _convolve(
    grid: Tensor,
    added: Tensor | None,
    weights: Sequence[Tensor],
    windows: Windows,
    biases: Sequence[Tensor],
    gelu: bool,
    flip: bool,
    out: Tensor | None = None,
) -> Tensor:
    if out is None:
        out = torch.empty_like(grid, memory_format=torch.contiguous_format)
    grids = grid, grid if added is None else added, out
    strides = (*grid.stride()[:3], *grids[1].stride()[:3], *out.stride()[:3])
    constants = bool(biases), gelu, added is not None, flip
    steps = _steps(CONVOLVE, grid.shape[:3], strides, windows, constants, False)
    for i, (step, (first, second, result)) in enumerate(zip(steps, _parts(grids, windows), strict=True)):
        weight = weights[i].contiguous()
        tensors = first, second, weight, biases[i] if biases else weight, result
        _START_CONVOLVE(step.programs, tensors, *step[1:])
    return out


def _correlate(
    grad: Tensor,
    grid: Tensor,
    weights: Sequence[Tensor],
    windows: Windows,
    biases: Sequence[Tensor],
    gelu: bool,
    activation: Tensor | None = None,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The gradient of the convolution's result, and those of its weights and biases.

    Args:
        activation: an empty grid that takes ``gelu(conv(grid))``.
    """
    shape = CORRELATE_GELU if gelu else CORRELATE
    d = torch.empty_like(grid, memory_format=torch.contiguous_format) if gelu else grad
    rows, sizes = partial_sums(shape, grid.shape[:3], windows)
    partials = torch.empty(rows, sum(sizes), dtype=torch.float32, device=grid.device)
    strides = (*grad.stride()[:3], *grid.stride()[:3])
    if not gelu:
        steps = _steps(shape, grid.shape[:3], strides, windows, (), True)
        for step, (of_result, values) in zip(steps, _parts((grad, grid), windows), strict=True):
            _START_CORRELATE(step.programs, (of_result, values, partials), *step[1:])
    else:
        constants = bool(biases), activation is not None
        steps = _steps(shape, grid.shape[:3], (*strides, *d.stride()[:3]), windows, constants, True)
        for i, (step, parts) in enumerate(zip(steps, _parts((grad, grid, d), windows), strict=True)):
            of_result, values, result = parts
            weight = weights[i].contiguous()
            bias, kept = biases[i] if biases else weight, result if activation is None else activation
            tensors = of_result, values, weight, bias, result, kept, partials
            _START_CORRELATE_GELU(step.programs, tensors, *step[1:])
    sums = partials.sum(0).split_with_sizes(sizes)
    of_weights = [typed(g.view(weight.shape), weight.dtype) for g, weight in zip(sums[::2], weights, strict=True)]
    return d, of_weights, [typed(g, bias.dtype) for g, bias in zip(sums[1::2], biases, strict=False)]


depthwise: Callable[..., Tensor] = registration.operator(
    "depthwise(Tensor grid, Tensor[] weights, Tensor[] biases, bool gelu, bool add) -> Tensor", reference, launch
)
"""Depthwise convolutions that keep the size, with what follows them: ``grid + gelu(conv(grid))``.

Args:
    grid: (B, H, W, C).
    weights: (C', 1, k, k), of any type; the sum of all C' is C.
    biases: one (C',) for each weight, or none.
    gelu: whether the GELU, in its exact form, follows.
    add: whether the grid is added.

Returns:
    (B, H, W, C), contiguous, of the grid's type.
"""

depthwise_backward: Callable[..., tuple[Tensor, list[Tensor], list[Tensor]]] = registration.operator(
    "depthwise_backward(Tensor grad, Tensor grid, Tensor[] weights, Tensor[] biases, bool gelu, bool add)"
    " -> (Tensor, Tensor[], Tensor[])",
    backward_reference,
    launch_backward,
)
"""The gradients of the grid, the weights and the biases, from the gradient of ``depthwise`` and its inputs. What the
GELU was applied to is computed again."""


def _shapes_of_gradients(
    grad: Tensor, grid: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], gelu: bool, add: bool
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    return _like(grid), [x.new_empty(x.shape) for x in weights], [x.new_empty(x.shape) for x in biases]


def _like(grid: Tensor) -> Tensor:
    return grid.new_empty(grid.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grid, weights, biases, *ctx.options = inputs
    ctx.count = len(weights)
    ctx.save_for_backward(grid, *weights, *biases)


def _backward(ctx: Any, grad: Tensor) -> Any:
    grid, *parameters = ctx.saved_tensors
    weights, biases = parameters[: ctx.count], parameters[ctx.count :]
    return *depthwise_backward(grad, grid, weights, biases, *ctx.options), None, None


registration.in_graphs("depthwise", lambda grid, *_: _like(grid), _backward, _keep)
registration.in_graphs("depthwise_backward", _shapes_of_gradients)

depthwise_gelu_slopes: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]] = registration.operator(
    "depthwise_gelu_slopes(Tensor grad, Tensor grid, Tensor weight, Tensor bias) -> (Tensor, Tensor, Tensor, Tensor)",
    slopes_reference,
    launch_slopes,
)
"""The first half of the gradient of ``gelu(conv(grid))``: ``(of_conv, activation, of_weight, of_bias)``, where
``of_conv`` is the gradient of the convolution's result. The activation, which the linear map after it needs, is a
by-product: so nobody has to keep it."""

depthwise_transposed: Callable[..., Tensor] = registration.operator(
    "depthwise_transposed(Tensor grad, Tensor weight) -> Tensor", transposed_reference, launch_transposed
)
"""The second half: the gradient of the grid, from that of the convolution's result."""

depthwise_of_rows: Callable[..., Tensor] = registration.operator(
    "depthwise_of_rows(Tensor rows, SymInt[] shapes, Tensor[] weights, Tensor[] biases) -> Tensor",
    rows_reference,
    launch_of_rows,
)
"""``grid + conv(grid)`` of the grids in the rows (R, C) of some levels. Class tokens stay as they are.

Args:
    shapes: see ``levels_of``.
    weights: one (C, 1, k, k) for each level.
    biases: one (C,) for each, or none.
"""

depthwise_of_rows_backward: Callable[..., tuple[Tensor, list[Tensor], list[Tensor]]] = registration.operator(
    "depthwise_of_rows_backward(Tensor grad, Tensor rows, SymInt[] shapes, Tensor[] weights, Tensor[] biases)"
    " -> (Tensor, Tensor[], Tensor[])",
    rows_backward_reference,
    launch_of_rows_backward,
)
"""The gradients of the rows, the weights and the biases."""


def _shapes_of_gradients_of_rows(
    grad: Tensor, rows: Tensor, shapes: Sequence[int], weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    return _shapes_of_gradients(grad, rows, weights, biases, False, True)


def _keep_rows(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows, ctx.shapes, weights, biases = inputs
    ctx.count = len(weights)
    ctx.save_for_backward(rows, *weights, *biases)


def _backward_of_rows(ctx: Any, grad: Tensor) -> Any:
    rows, *parameters = ctx.saved_tensors
    weights, biases = parameters[: ctx.count], parameters[ctx.count :]
    of_rows, of_weights, of_biases = depthwise_of_rows_backward(grad, rows, ctx.shapes, weights, biases)
    return of_rows, None, of_weights, of_biases


registration.in_graphs("depthwise_of_rows", lambda rows, *_: _like(rows), _backward_of_rows, _keep_rows)
registration.in_graphs("depthwise_of_rows_backward", _shapes_of_gradients_of_rows)
