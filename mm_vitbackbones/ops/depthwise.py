"""Depthwise convolutions over grids (B, H, W, C), with what follows them, in one pass on CUDA.

There the operators of ``kernels/depthwise.py`` run. Training keeps the grid alone, and under autocast the weights and
their gradients stay in fp32. The callers, in other modules of this folder, call the convolutions where ``serves`` says
no.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mm_vitbackbones.ops import context
from mm_vitbackbones.ops.chained import Forked, Pending, then
from mm_vitbackbones.ops.kernels import depthwise as kernels
from mm_vitbackbones.ops.kernels import registration
from mm_vitbackbones.ops.once import direct, typed


def is_for(tensor: Tensor) -> bool:
    """Whether the operators are the form for a call with this tensor: in eager mode and in compiled graphs, where their
    kernels run."""
    if context.device_type(tensor) != "cuda":
        return False
    if context.is_compiling_to_run():
        return registration.serve_in_graphs(tensor)
    return context.is_eager() and registration.serve(tensor)


def serves(
    grid: Tensor | Forked, convs: Sequence[nn.Module], expand: nn.Module | None = None, known: bool = False
) -> bool:
    """Whether ``run`` may take the place of convolutions over grids (B, H, W, C), each of the next channels.

    Args:
        expand: a linear map before it; ``grid`` is then what this map takes.
        known: that the operators are the form for the grid.
    """
    if not known and not (type(grid) is Tensor and is_for(grid)):
        return False
    if not all(map(_is_depthwise, convs)):
        return False
    weights, biases = parameters_of(convs)
    parameters = [*weights, *biases]
    # What PyTorch refuses is left to the modules, whose errors people know.
    left = grid.shape[-1] if expand is None else expand.__dict__["_parameters"]["weight"].shape[0]
    for weight in weights:
        left -= weight.shape[0]
    device, dtype, same = grid.device, grid.dtype, True
    for x in parameters:
        if x.device != device:
            return False
        same = same and x.dtype == dtype
    return left == 0 and (same or _narrow(grid, parameters) is not None)


def run(grid: Tensor, convs: Sequence[nn.Module], gelu: bool = False, add: bool = False) -> Tensor:
    """``gelu(conv(grid))``, or with ``add`` ``grid + conv(grid)``: (B, H, W, C), contiguous.

    Autocast casts the grid as it does for the modules, except where it is added: then the result has its type.
    """
    weights, biases = parameters_of(convs)
    narrow = _narrow(grid, [*weights, *biases])
    if narrow is not None and not add:
        grid = typed(grid, narrow)
    # In graphs the operator itself has a gradient.
    if torch.is_grad_enabled() and context.is_eager():
        return cast(Tensor, _depthwise(grid, len(weights), gelu, add, *weights, *biases))
    return kernels.depthwise(grid, weights, biases, gelu, add)


def begun(grid: Tensor, conv: nn.Module) -> Tensor | Pending:
    """``conv(grid)``: (B, H, W, C) -> (B, H, W, C); in training on CUDA, the call that gives it."""
    if not serves(grid, [conv]):
        return conv(grid)
    if not (torch.is_grad_enabled() and context.is_eager()):
        return run(grid, [conv])
    weights, biases = parameters_of([conv])
    narrow = _narrow(grid, [*weights, *biases])
    grid = grid if narrow is None else typed(grid, narrow)
    return Pending(_Depthwise, (grid, 1, False, False, *weights, *biases))


def then_gelu(grid: Forked, conv: nn.Module) -> Tensor:
    """``gelu(conv(grid))`` in training, where ``serves``."""
    weights, biases = parameters_of([conv])
    return then(grid, _Depthwise, 1, True, False, *weights, *biases)[0]


def split(grid: Tensor, convs: Sequence[nn.Module], widths: Sequence[int]) -> Tensor:
    """The results of several convolutions, each of so many channels: (B, H, W, C) -> (B, H, W, C)."""
    if serves(grid, convs):
        return run(grid, convs)
    return torch.cat([conv(part) for conv, part in zip(convs, grid.split(list(widths), -1), strict=True)], dim=-1)


def _is_depthwise(conv: nn.Module) -> bool:
    """Whether it is a plain depthwise convolution that keeps the size, of a window that the kernels know."""
    if not isinstance(conv, nn.Conv2d) or not context.is_plain(conv):
        return False
    return (
        conv.groups == conv.in_channels == conv.out_channels
        and (conv.kernel_size, conv.padding) in _KEEPING_THE_SIZE
        and conv.stride == conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
    )


_KEEPING_THE_SIZE = {((side, side), (side // 2, side // 2)) for side in kernels.SIDES}
"""Windows and paddings."""


def parameters_of(convs: Sequence[nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
    """The weights, and the biases: zeros where only some convolutions have one."""
    if len(convs) == 1:
        parameters = convs[0].__dict__["_parameters"]
        return [parameters["weight"]], [] if parameters["bias"] is None else [parameters["bias"]]
    of_convs = [conv.__dict__["_parameters"] for conv in convs]
    weights, biases = [x["weight"] for x in of_convs], [x["bias"] for x in of_convs]
    missing = sum([bias is None for bias in biases])
    if not missing:
        return weights, biases
    if missing == len(convs):
        return weights, []
    pairs = zip(weights, biases, strict=True)
    return weights, [weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in pairs]


def _narrow(grid: Tensor | Forked, parameters: Sequence[Tensor]) -> torch.dtype | None:
    """The type that autocast computes these convolutions in; it leaves fp64 alone."""
    dtype = context.autocast_dtype(grid.device)
    return None if dtype is None or torch.float64 in {x.dtype for x in (grid, *parameters)} else dtype


class _Depthwise(torch.autograd.Function):
    """See ``run``. It has gradients of its gradients, those of the reference."""

    @staticmethod
    def forward(ctx: Any, grid: Tensor, count: int, gelu: bool, add: bool, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(grid, *parameters)
        ctx.options = count, gelu, add
        return kernels.depthwise(grid, parameters[:count], parameters[count:], gelu, add)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        count, gelu, add = ctx.options
        grid, *parameters = ctx.saved_tensors
        weights, biases = parameters[:count], parameters[count:]
        if torch.is_grad_enabled():  # someone asks for the gradient of these gradients
            out = kernels.reference(grid, weights, biases, gelu, add)
            wanted = [x for x in (grid, *parameters) if x.requires_grad]
            found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
            of_grid, *others = [next(found) if x.requires_grad else None for x in (grid, *parameters)]
        else:
            of_grid, of_weights, of_biases = kernels.depthwise_backward(grad, grid, weights, biases, gelu, add)
            others = [*of_weights, *of_biases]
        return of_grid, None, None, None, *others


cast(Any, _Depthwise.backward).unchecked = _Depthwise.backward  # for `ops.chained`
_depthwise = direct(_Depthwise)
