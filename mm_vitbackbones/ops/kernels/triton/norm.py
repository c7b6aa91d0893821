"""Layer normalisation of rows; see ``ops.kernels.norm``.

A program takes a tile of whole rows. In the backward pass it takes many, one after the other, and adds up the gradients
of weight and bias in registers; the sums of all programs are added at the end.
"""

# mypy: ignore-errors

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mm_vitbackbones.ops.kernels.norm import type_of_sum
from mm_vitbackbones.ops.kernels.triton.launch import Launcher

TILE = 2048
"""Elements of a tile, at least one row."""
FEW_CHANNELS, PROGRAMS = 128, 528
"""Programs of the backward pass with so few channels, four for each multiprocessor of a large card; half with more."""


@triton.jit(do_not_specialize=["rows", "rows_of_sample", "eps"])
def _forward(
    x, branch, factor, scale_of, weight, bias, total, y, statistics, rows, rows_of_sample, eps,
    C: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, SUM: tl.constexpr, FACTOR: tl.constexpr,
    SCALE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < C)[None, :]
    at = row[:, None] * C + column[None, :]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if SUM:
        other = tl.load(branch + at, mask=inside, other=0.0).to(tl.float32)
        if FACTOR:
            other *= tl.load(factor + row // rows_of_sample, mask=row < rows, other=0.0).to(tl.float32)[:, None]
        if SCALE:
            other *= tl.load(scale_of + column, mask=column < C, other=0.0).to(tl.float32)[None, :]
        narrow = (value + other).to(total.dtype.element_ty)
        tl.store(total + at, narrow, mask=inside)
        value = narrow.to(tl.float32)
    centre = tl.sum(value, 1) / C
    value = tl.where(inside, value - centre[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(value * value, 1) / C + eps)
    w = tl.load(weight + column, mask=column < C, other=0.0).to(tl.float32)
    b = tl.load(bias + column, mask=column < C, other=0.0).to(tl.float32)
    result = value * scale[:, None] * w[None, :] + b[None, :]
    tl.store(y + at, result.to(y.dtype.element_ty), mask=inside)
    tl.store(statistics + row, centre, mask=row < rows)
    tl.store(statistics + rows + row, scale, mask=row < rows)


@triton.jit(do_not_specialize=["rows", "rows_of_sample", "tiles", "programs"])
def _backward(
    grad, grad_total, x, statistics, weight, factor, grad_x, grad_branch, partial, rows, rows_of_sample, tiles,
    programs, C: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, TOTAL: tl.constexpr, SUM: tl.constexpr,
    FACTOR: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    column = tl.arange(0, COLUMNS)
    w = tl.load(weight + column, mask=column < C, other=0.0).to(tl.float32)
    of_weight = tl.zeros((ROWS, COLUMNS), tl.float32)
    of_bias = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tile in range(program, tiles, programs):
        row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        inside = (row < rows)[:, None] & (column < C)[None, :]
        at = row[:, None] * C + column[None, :]
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        centre = tl.load(statistics + row, mask=row < rows, other=0.0)
        scale = tl.load(statistics + rows + row, mask=row < rows, other=0.0)
        normalised = tl.where(inside, (value - centre[:, None]) * scale[:, None], 0.0)
        of_weight += g * normalised
        of_bias += g
        inner = g * w[None, :]
        along = tl.sum(inner * normalised, 1) / C
        average = tl.sum(inner, 1) / C
        result = (inner - normalised * along[:, None] - average[:, None]) * scale[:, None]
        if TOTAL:
            result += tl.load(grad_total + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad_x + at, result.to(grad_x.dtype.element_ty), mask=inside)
        if SUM:
            if FACTOR:
                result *= tl.load(factor + row // rows_of_sample, mask=row < rows, other=0.0).to(tl.float32)[:, None]
            tl.store(grad_branch + at, result.to(grad_branch.dtype.element_ty), mask=inside)
    here = partial + program * C + column
    tl.store(here, tl.sum(of_weight, 0), mask=column < C)
    tl.store(here + programs * C, tl.sum(of_bias, 0), mask=column < C)


_start_forward, _start_backward = Launcher(_forward), Launcher(_backward)


@functools.cache
def tile_of(channels: int) -> tuple[int, int, int]:
    """Columns and rows of a tile, and its warps."""
    columns = triton.next_power_of_2(channels)
    rows = max(1, TILE // columns)
    return columns, rows, max(4, min(16, columns * rows // 512))


def add_layer_norm(
    x: Tensor,
    branch: Tensor | None,
    factor: Tensor | None,
    scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dtype: torch.dtype,
    into: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``into`` is memory for the results."""
    x, shape = x.contiguous(), x.shape
    channels = shape[-1]
    rows = x.numel() // channels
    if branch is not None:
        branch = branch.contiguous()
    if into is not None:
        total, y, statistics = into
    else:
        total = x
        if branch is not None:
            total = torch.empty_like(x, dtype=type_of_sum(x, branch, scale))
        y = torch.empty_like(x, dtype=dtype)
        statistics = torch.empty(2, rows, dtype=torch.float32, device=x.device)
    columns, height, warps = tile_of(channels)
    _start_forward(
        (-(-rows // height), 1, 1),
        (
            x, x if branch is None else branch, x if factor is None else factor, x if scale is None else scale, weight,
            bias, total, y, statistics,
        ),
        (rows, rows // shape[0], eps),
        (channels, columns, height, branch is not None, factor is not None, scale is not None),
        warps,
    )  # fmt: skip
    return total, y, statistics


def add_layer_norm_backward(
    grad: Tensor,
    grad_total: Tensor | None,
    x: Tensor,
    statistics: Tensor,
    weight: Tensor,
    factor: Tensor | None,
    dtype: torch.dtype | None,
    into: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``dtype`` is that of the branch's gradient; None: there is no branch. ``into`` is memory for the first two
    results."""
    grad, x, shape = grad.contiguous(), x.contiguous(), x.shape
    grad_total = None if grad_total is None else grad_total.contiguous()
    channels = shape[-1]
    rows = x.numel() // channels
    columns, height, warps = tile_of(channels)
    tiles = -(-rows // height)
    programs = min(tiles, PROGRAMS if columns <= FEW_CHANNELS else PROGRAMS // 2)
    if into is not None:
        grad_x, grad_branch = into
    else:
        grad_x = torch.empty_like(x)
        grad_branch = grad_x if dtype is None else torch.empty_like(x, dtype=dtype)
    partial = torch.empty(2, programs, channels, dtype=torch.float32, device=x.device)
    _start_backward(
        (programs, 1, 1),
        (
            grad, grad if grad_total is None else grad_total, x, statistics, weight, x if factor is None else factor,
            grad_x, grad_branch, partial,
        ),
        (rows, rows // shape[0], tiles, programs),
        (channels, columns, height, grad_total is not None, dtype is not None, factor is not None),
        warps,
    )  # fmt: skip
    of_weight, of_bias = partial.sum(1).unbind()
    return grad_x, grad_branch, of_weight, of_bias


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return add_layer_norm(x, None, None, None, weight, bias, eps, dtype)[1:]


def layer_norm_backward(
    grad: Tensor, grad_total: Tensor | None, x: Tensor, statistics: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, _, of_weight, of_bias = add_layer_norm_backward(grad, grad_total, x, statistics, weight, None, None)
    return grad_x, of_weight, of_bias


# ---- by level


def add_layer_norm_by_level(
    x: Tensor,
    branch: Tensor | None,
    factor: Tensor | None,
    sizes: Sequence[int],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    x = x.contiguous()
    total, y = x, torch.empty_like(x, dtype=dtype)
    statistics = torch.empty(2 * len(x), dtype=torch.float32, device=x.device)
    if branch is not None:
        branch, total = branch.contiguous(), torch.empty_like(x, dtype=type_of_sum(x, branch, None))
    into = zip(*_by_level(sizes, total, y), statistics.split_with_sizes([2 * size for size in sizes]), strict=True)
    parts = zip(*_by_level(sizes, x, branch, factor), weights, biases, into, strict=True)
    for of_x, of_branch, factors, weight, bias, results in parts:
        add_layer_norm(of_x, of_branch, factors, None, weight, bias, eps, dtype, results)
    return total, y, statistics


def layer_norm_by_level(
    x: Tensor,
    sizes: Sequence[int],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    return add_layer_norm_by_level(x, None, None, sizes, weights, biases, eps, dtype)[1:]


def add_layer_norm_by_level_backward(
    grad: Tensor,
    grad_total: Tensor | None,
    x: Tensor,
    statistics: Tensor,
    factor: Tensor | None,
    sizes: Sequence[int],
    weights: Sequence[Tensor],
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    grad, x = grad.contiguous(), x.contiguous()
    grad_total = None if grad_total is None else grad_total.contiguous()
    grad_x = torch.empty_like(x)
    grad_branch = grad_x if dtype is None else torch.empty_like(x, dtype=dtype)
    into = zip(*_by_level(sizes, grad_x, grad_branch), strict=True)
    grads, totals, xs, factors = _by_level(sizes, grad, grad_total, x, factor)
    of_level = statistics.split_with_sizes([2 * size for size in sizes])
    parts = zip(grads, totals, xs, of_level, weights, factors, [dtype] * len(sizes), into, strict=True)
    _, _, of_weights, of_biases = zip(*[add_layer_norm_backward(*part) for part in parts], strict=True)
    return grad_x, grad_branch, [*of_weights], [*of_biases]


def layer_norm_by_level_backward(
    grad: Tensor,
    grad_total: Tensor | None,
    x: Tensor,
    statistics: Tensor,
    sizes: Sequence[int],
    weights: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    of_x, _, *others = add_layer_norm_by_level_backward(grad, grad_total, x, statistics, None, sizes, weights, None)
    return of_x, *others


def _by_level(sizes: Sequence[int], *rows: Tensor | None) -> list[Any]:
    """Of each, the rows of each level."""
    return [[None] * len(sizes) if x is None else x.split_with_sizes(sizes) for x in rows]
