"""Norms of channels, and sums that a norm follows: x (..., C).

On CUDA each is one pass over memory, see ``ops.kernels.norm``; elsewhere, PyTorch's own operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.ops import context, memory
from mm_vitbackbones.ops import conv as conv_ops
from mm_vitbackbones.ops.chained import Forked
from mm_vitbackbones.ops.kernels import norm as kernels
from mm_vitbackbones.ops.kernels import registration
from mm_vitbackbones.ops.kernels.scale import scale_backward
from mm_vitbackbones.ops.once import direct, once_differentiable, typed


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm over channels, in fp32 under autocast: its computation and its result.

    That is autocast's rule on CUDA. On a CPU there is none, and everything after a norm, that is, the whole residual
    stream, would be bf16: gradients of norms would be wrong by a tenth, and a network would learn visibly less.
    """
    if (narrow := context.autocast_dtype_of(x)) is None:
        if bias is not None and weight.dim() == 1 and is_for(x):
            return _normalised(x, weight, bias, eps, x.dtype)[1]
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    if bias is not None and weight.dim() == 1 and is_for(x):
        return _normalised(x, weight, bias, eps, torch.promote_types(narrow, torch.float32))[1]
    return F.layer_norm(x.float(), weight.shape, weight.float(), None if bias is None else bias.float(), eps)


def for_linear(x: Tensor, norm: nn.Module, again: bool = True) -> Tensor:
    """``norm(x)``, which only linear maps read: under autocast on CUDA it is of the narrower type that they would cast
    it to.

    Args:
        again: whether training on a CPU computes it again instead of keeping it.
    """
    if is_fast(x, norm):
        return fork(x, norm)[1]
    return memory.cheap(norm, x) if again else norm(x)


def is_fast(x: Tensor, norm: nn.Module) -> bool:
    """Whether ``fork`` and ``add`` take this norm: a plain LayerNorm over channels, in eager mode on CUDA."""
    return is_for(x) and is_over_channels(norm)


def is_for(x: Tensor) -> bool:
    """Whether the kernels are the form for ``x``; their references would be slower than PyTorch's own norm."""
    if not context.is_eager_on_cuda(x) or x.dtype == torch.float64 or x.numel() == 0:
        return False
    return registration.serve(x)


def is_over_channels(norm: nn.Module) -> bool:
    """Whether a norm is a plain LayerNorm over channels, with weight and bias."""
    if not isinstance(norm, nn.LayerNorm) or len(norm.normalized_shape) != 1 or not context.is_plain(norm):
        return False
    parameters = norm.__dict__["_parameters"]
    return parameters["weight"] is not None and parameters["bias"] is not None


def fork(x: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """``x`` and ``norm(x)`` as for ``for_linear``. The norm's own pass adds up the gradients of both, if what follows
    uses the returned x."""
    weight, bias, eps, dtype = _options_of(norm, x)
    x, normed = _normalised(x, weight, bias, eps, dtype)
    if memory.state.policy == memory.LEAST and torch.is_grad_enabled():
        made(normed, x, weight, bias, eps)
    return x, normed


def forked(x: Tensor, norm: nn.Module) -> Forked | None:
    """``fork`` in training, left to what takes the norm's result. None where the least is to be kept: then it is to be
    called."""
    if memory.state.policy == memory.LEAST:
        return None
    options = _options_of(norm, x)
    return Forked(_Norm, (x, *options), options[-1])


def parameters_of(norm: nn.Module) -> tuple[Tensor, Tensor, float]:
    """Weight, bias and epsilon of a norm that ``is_over_channels``."""
    parameters = norm.__dict__["_parameters"]
    return parameters["weight"], parameters["bias"], norm.__dict__["eps"]


def _options_of(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, float, torch.dtype]:
    """``parameters_of``, and the type of the norm's result, which linear maps read."""
    parameters = norm.__dict__["_parameters"]
    weight = parameters["weight"]
    return weight, parameters["bias"], norm.__dict__["eps"], context.autocast_dtype(x.device) or weight.dtype


def add(
    x: Tensor, branch: Tensor, factor: Tensor | None, scale: Tensor | None, norm: nn.Module
) -> tuple[Tensor, Tensor]:
    """``fork(x + factor * scale * branch, norm)``.

    Args:
        factor: one for each sample, (B,), or None.
        scale: one for each channel, (C,), or None.
    """
    weight, bias, eps, dtype = _options_of(norm, x)
    arguments = x, branch, factor, scale, weight, bias, eps, dtype
    if not torch.is_grad_enabled():
        return kernels.add_layer_norm(*arguments)[:2]
    total, normed = _norm_of_sum(*arguments)
    if memory.state.policy != memory.ALL_RESULTS:
        made(normed, total, weight, bias, eps)
    return total, normed


def added(x: Tensor, branch: Tensor, factor: Tensor | None, scale: Tensor | None, norm: nn.Module) -> Forked | None:
    """``add`` in training, left to what takes the norm's result. None where it is to be called: where the least is to
    be kept, and in what is computed again."""
    if memory.state.policy != memory.USUAL:
        return None
    options = _options_of(norm, x)
    return Forked(NormOfSum, (x, branch, factor, scale, *options), options[-1])


def made(normed: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> None:
    """Marks the norm of x, see ``memory.made``."""
    dtype = normed.dtype
    memory.made(normed, lambda *sources: kernels.layer_norm(*sources, eps, dtype)[0], x, weight, bias)


def _normalised(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    if torch.is_grad_enabled():
        return _norm(x, weight, bias, eps, dtype)
    return x, kernels.layer_norm(x, weight, bias, eps, dtype)[0]


def batch_norm(grid: Tensor, norm: nn.Module) -> Tensor:
    """A batch norm of maps, such as ``nn.BatchNorm2d`` or what a conversion to synchronised norms puts in its place, of
    a grid (B, H, W, C). What is computed again counts its batch once."""
    maps = grid.permute(0, 3, 1, 2)
    counts = getattr(norm, "track_running_stats", False) and norm.training
    if not (counts and memory.is_again()):
        return norm(maps).permute(0, 2, 3, 1)
    norm = cast(nn.BatchNorm2d, norm)
    kept = norm.momentum, norm.num_batches_tracked
    # Without statistics at all, autograd would keep other tensors than in the first computation.
    norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        return norm(maps).permute(0, 2, 3, 1)
    finally:
        norm.momentum, norm.num_batches_tracked = kept


def convs_and_norms(grid: Tensor, convs: Sequence[nn.Module], norms: Sequence[nn.Module]) -> Tensor:
    """``norm(conv(grid))`` of each pair, with a GELU in between: grids (B, H, W, C) -> (B, H', W', C'). Training
    computes the GELUs again instead of keeping their results.

    Args:
        convs: over grids.
        norms: batch norms of maps.
    """
    activated = True  # whether the grid is what a convolution takes
    for i, (conv, norm) in enumerate(zip(convs, norms, strict=True)):
        gelu = i < len(convs) - 1
        if not activated:
            grid = memory.cheap(F.gelu, grid)
        folded = conv_ops.conv_norm(grid, conv, norm, gelu)
        activated = folded is not None and gelu
        grid = batch_norm(conv(grid), norm) if folded is None else folded
    return grid


class _Norm(torch.autograd.Function):
    """x -> x and its norm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Any:
        x = x.contiguous()
        y, statistics = kernels.layer_norm(x, weight, bias, eps, dtype)
        ctx.save_for_backward(x, weight, statistics)
        ctx.set_materialize_grads(False)
        return x, y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_x: Tensor | None, grad: Tensor | None) -> Any:
        if grad is None:
            return grad_x, None, None, None, None
        x, weight, statistics = ctx.saved_tensors
        grad_x, of_weight, of_bias = kernels.layer_norm_backward(grad, grad_x, x, statistics, weight)
        return grad_x, typed(of_weight, weight.dtype), typed(of_bias, weight.dtype), None, None


class NormOfSum(torch.autograd.Function):
    """x, branch -> x + factor * scale * branch and its norm."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        branch: Tensor,
        factor: Tensor | None,
        scale: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        dtype: torch.dtype,
    ) -> Any:
        total, y, statistics = kernels.add_layer_norm(x, branch, factor, scale, weight, bias, eps, dtype)
        ctx.save_for_backward(total, weight, statistics, factor, scale, None if scale is None else branch)
        ctx.dtypes = x.dtype, branch.dtype
        ctx.set_materialize_grads(False)
        return total, y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor | None, grad: Tensor | None) -> Any:
        total, weight, statistics, factor, scale, branch = ctx.saved_tensors
        if grad is None:  # nothing has used the norm
            grad = torch.zeros_like(total)
        of_scale = None
        if scale is None:
            of_x, of_branch, of_weight, of_bias = kernels.add_layer_norm_backward(
                grad, grad_total, total, statistics, weight, factor, ctx.dtypes[1]
            )
        else:
            of_x, of_weight, of_bias = kernels.layer_norm_backward(grad, grad_total, total, statistics, weight)
            of_branch, of_scale = scale_backward(of_x, branch, factor, scale)
            of_scale = typed(of_scale, scale.dtype)
        return (
            typed(of_x, ctx.dtypes[0]),
            of_branch,
            None,
            of_scale,
            typed(of_weight, weight.dtype),
            typed(of_bias, weight.dtype),
            None,
            None,
        )


_norm, _norm_of_sum = direct(_Norm), direct(NormOfSum)
