"""Layer normalisation, alone and of a sum, forward and backward: each one pass over memory.

PyTorch's kernel is slow for rows of few channels. Under autocast it also writes fp32, which the linear map after it
casts in a pass of its own. And the sum before it, ``x + factor * scale * branch``, and its gradient are passes of their
own.

A row is one token: x (..., C), statistics (2, rows), the mean and the inverse standard deviation of each in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mm_vitbackbones.ops.kernels.registration import kernel, operator


def _reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, ...]:
    y, *statistics = _normalised(x, weight, bias, eps)
    return y.to(dtype), torch.stack([of_rows.flatten() for of_rows in statistics])


def _normalised(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The norm in fp32 at least, the means and the inverse deviations."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.native_layer_norm(x.to(wide), weight.shape, weight.to(wide), bias.to(wide), eps)


def _reference_of_sum(
    x: Tensor,
    branch: Tensor,
    factor: Tensor | None,
    scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    total = _total(x, branch, factor, scale)
    return total, *_reference(total, weight, bias, eps, dtype)


def type_of_sum(x: Tensor, branch: Tensor, scale: Tensor | None) -> torch.dtype:
    """Of ``x + scale * branch``, as by PyTorch's operators: a scale in fp32 makes a sum of narrow ones wide."""
    dtype = x.dtype if x.dtype == branch.dtype else torch.promote_types(x.dtype, branch.dtype)
    return dtype if scale is None or scale.dtype == dtype else torch.promote_types(dtype, scale.dtype)


def _total(x: Tensor, branch: Tensor, factor: Tensor | None, scale: Tensor | None) -> Tensor:
    dtype = type_of_sum(x, branch, scale)
    if factor is not None:
        branch = branch * _by_sample(factor, x)
    return (x + (branch if scale is None else branch * scale)).to(dtype)


def _by_sample(factor: Tensor, x: Tensor) -> Tensor:
    return factor.view(-1, *(1,) * (x.dim() - 1))


def _reference_backward(
    grad: Tensor, grad_total: Tensor | None, x: Tensor, statistics: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    of_x, of_weight, of_bias = _gradients(grad, x, statistics, weight)
    return (of_x if grad_total is None else of_x + grad_total).to(x.dtype), of_weight, of_bias


def _gradients(grad: Tensor, x: Tensor, statistics: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of x through its norm, of the weight and of the bias, in the type of the statistics."""
    wide, (mean, rstd) = statistics.dtype, statistics.view(2, *x.shape[:-1], 1)
    weight = weight.to(wide)
    arguments = grad.to(wide), x.to(wide), weight.shape, mean, rstd, weight, weight, [True] * 3
    return torch.ops.aten.native_layer_norm_backward(*arguments)


def _reference_backward_of_sum(
    grad: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    statistics: Tensor,
    weight: Tensor,
    factor: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_x, of_weight, of_bias = _reference_backward(grad, grad_total, total, statistics, weight)
    return grad_x, _of_branch(grad_x, factor, dtype), of_weight, of_bias


def _of_branch(of_sum: Tensor, factor: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The gradient of a branch, in other memory than that of the sum."""
    return of_sum.to(dtype, copy=True) if factor is None else (of_sum * _by_sample(factor, of_sum)).to(dtype)


def _reference_by_level(
    x: Tensor,
    sizes: Sequence[int],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    y, sizes = torch.empty_like(x, dtype=dtype), list(sizes)
    statistics: list[Tensor] = []
    for part, out, weight, bias in zip(x.split(sizes), y.split(sizes), weights, biases, strict=True):
        normed, *of_level = _normalised(part, weight, bias, eps)
        out.copy_(normed)
        statistics += [of_rows.flatten() for of_rows in of_level]
    return y, torch.cat(statistics)


def _reference_of_sum_by_level(
    x: Tensor,
    branch: Tensor,
    factor: Tensor | None,
    sizes: Sequence[int],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    total = _total(x, branch, factor, None)
    return total, *_reference_by_level(total, sizes, weights, biases, eps, dtype)


def _reference_backward_by_level(
    grad: Tensor,
    grad_total: Tensor | None,
    x: Tensor,
    statistics: Tensor,
    sizes: Sequence[int],
    weights: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    sizes, of_x, grad = list(sizes), torch.empty_like(x), grad.to(statistics.dtype)
    of_level = statistics.split([2 * size for size in sizes])
    parts = zip(grad.split(sizes), x.split(sizes), of_level, weights, strict=True)
    found, of_weights, of_biases = zip(*(_gradients(*part) for part in parts), strict=True)
    if grad_total is None:
        torch.cat(found, out=of_x)
    else:
        for of_part, total, out in zip(found, grad_total.split(sizes), of_x.split(sizes), strict=True):
            torch.add(of_part, total, out=out)
    return of_x, [*of_weights], [*of_biases]


def _reference_backward_of_sum_by_level(
    grad: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    statistics: Tensor,
    factor: Tensor | None,
    sizes: Sequence[int],
    weights: Sequence[Tensor],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    of_x, of_weights, of_biases = _reference_backward_by_level(grad, grad_total, total, statistics, sizes, weights)
    return of_x, _of_branch(of_x, factor, dtype), of_weights, of_biases


layer_norm = operator(
    "layer_norm(Tensor x, Tensor weight, Tensor bias, float eps, ScalarType dtype) -> (Tensor, Tensor)",
    _reference,
    kernel("norm", "layer_norm"),
)
"""``(y, statistics)``: the normalised x in ``dtype``."""

add_layer_norm = operator(
    "add_layer_norm(Tensor x, Tensor branch, Tensor? factor, Tensor? scale, Tensor weight, Tensor bias, float eps,"
    " ScalarType dtype) -> (Tensor, Tensor, Tensor)",
    _reference_of_sum,
    kernel("norm", "add_layer_norm"),
)
"""``(total, y, statistics)``: total = x + factor * scale * branch, with one factor (B,) for each sample and a scale
(C,) for each channel, or without; y is the normalised total in ``dtype``."""

layer_norm_backward = operator(
    "layer_norm_backward(Tensor grad, Tensor? grad_total, Tensor x, Tensor statistics, Tensor weight)"
    " -> (Tensor, Tensor, Tensor)",
    _reference_backward,
    kernel("norm", "layer_norm_backward"),
)
"""``(grad_x, grad_weight, grad_bias)``: that of x, plus ``grad_total``, what else its users have sent back; those of
weight and bias are in fp32."""

add_layer_norm_backward = operator(
    "add_layer_norm_backward(Tensor grad, Tensor? grad_total, Tensor total, Tensor statistics, Tensor weight,"
    " Tensor? factor, ScalarType dtype) -> (Tensor, Tensor, Tensor, Tensor)",
    _reference_backward_of_sum,
    kernel("norm", "add_layer_norm_backward"),
)
"""``(grad_x, grad_branch, grad_weight, grad_bias)`` without a scale; the branch's gradient is in ``dtype``. With one,
``layer_norm_backward`` gives that of the sum, and ``scale.scale_backward`` the others."""

# ---- by level: rows (R, C) of several levels, of which each has a norm of its own

layer_norm_by_level = operator(
    "layer_norm_by_level(Tensor x, int[] sizes, Tensor[] weights, Tensor[] biases, float eps, ScalarType dtype)"
    " -> (Tensor, Tensor)",
    _reference_by_level,
    kernel("norm", "layer_norm_by_level"),
)
"""``(y, statistics)`` of levels of so many rows each; statistics (2 R,) are those of the levels one after the other."""

add_layer_norm_by_level = operator(
    "add_layer_norm_by_level(Tensor x, Tensor branch, Tensor? factor, int[] sizes, Tensor[] weights, Tensor[] biases,"
    " float eps, ScalarType dtype) -> (Tensor, Tensor, Tensor)",
    _reference_of_sum_by_level,
    kernel("norm", "add_layer_norm_by_level"),
)
"""``(total, y, statistics)``: total = x + factor * branch, with one factor for each row, or without."""

layer_norm_by_level_backward = operator(
    "layer_norm_by_level_backward(Tensor grad, Tensor? grad_total, Tensor x, Tensor statistics, int[] sizes,"
    " Tensor[] weights) -> (Tensor, Tensor[], Tensor[])",
    _reference_backward_by_level,
    kernel("norm", "layer_norm_by_level_backward"),
)
"""``(grad_x, grad_weights, grad_biases)``, as ``layer_norm_backward``."""

add_layer_norm_by_level_backward = operator(
    "add_layer_norm_by_level_backward(Tensor grad, Tensor? grad_total, Tensor total, Tensor statistics,"
    " Tensor? factor, int[] sizes, Tensor[] weights, ScalarType dtype) -> (Tensor, Tensor, Tensor[], Tensor[])",
    _reference_backward_of_sum_by_level,
    kernel("norm", "add_layer_norm_by_level_backward"),
)
"""``(grad_x, grad_branch, grad_weights, grad_biases)``, as ``add_layer_norm_backward``."""
