"""Sums of columns and GELU's gradient; see ``ops.kernels.columns``.

A program takes a block of columns and every so many tiles of rows, adds up in registers, and writes one row of partial
sums; these are added at the end.
"""

# mypy: ignore-errors

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS, ROWS = 64, 32
"""Of a tile: rows of 128 bytes in 16 bits."""
PROGRAMS = 1056


@triton.jit
def _sums(matrix, partial, rows, C, programs, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    program = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tile in range(program, tl.cdiv(rows, ROWS), programs):
        row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        inside = (row < rows)[:, None] & (column < C)[None, :]
        sums += tl.load(matrix + row[:, None] * C + column[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(partial + program * C + column, tl.sum(sums, 0), mask=column < C)


@triton.jit
def _gelu_backward(
    grad, hidden, grad_hidden, activation, partial, rows, C, programs, COLUMNS: tl.constexpr, ROWS: tl.constexpr
):
    program = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tile in range(program, tl.cdiv(rows, ROWS), programs):
        row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        inside = (row < rows)[:, None] & (column < C)[None, :]
        at = row[:, None] * C + column[None, :]
        x = tl.load(hidden + at, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        below = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        slope = below + x * tl.exp(-0.5 * x * x) * 0.3989422804014327
        result = (g * slope).to(grad_hidden.dtype.element_ty)
        tl.store(grad_hidden + at, result, mask=inside)
        tl.store(activation + at, (x * below).to(activation.dtype.element_ty), mask=inside)
        sums += result.to(tl.float32)
    tl.store(partial + program * C + column, tl.sum(sums, 0), mask=column < C)


def _grid(rows: int, channels: int) -> tuple[int, int]:
    blocks = triton.cdiv(channels, COLUMNS)
    return max(1, min(triton.cdiv(rows, ROWS), PROGRAMS // blocks)), blocks


def sums(matrix: Tensor) -> Tensor:
    matrix = matrix.contiguous()
    rows, channels = matrix.shape
    grid = _grid(rows, channels)
    partial = torch.empty(grid[0], channels, dtype=torch.float32, device=matrix.device)
    _sums[grid](matrix, partial, rows, channels, grid[0], COLUMNS=COLUMNS, ROWS=ROWS)
    return partial.sum(0)


def gelu_backward(grad: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad, hidden = grad.contiguous(), hidden.contiguous()
    rows, channels = hidden.shape
    grid = _grid(rows, channels)
    grad_hidden, activation = torch.empty_like(hidden), torch.empty_like(hidden)
    partial = torch.empty(grid[0], channels, dtype=torch.float32, device=hidden.device)
    _gelu_backward[grid](
        grad, hidden, grad_hidden, activation, partial, rows, channels, grid[0], COLUMNS=COLUMNS, ROWS=ROWS
    )
    return grad_hidden, activation, partial.sum(0)
