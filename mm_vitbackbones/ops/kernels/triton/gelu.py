"""GELU's gradient; see ``ops.kernels.gelu``.

A program takes a block of columns and every so many tiles of rows, adds up in registers, and writes one row of partial
sums; these are added at the end.
"""

# mypy: ignore-errors

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mm_vitbackbones.ops.kernels.triton.launch import Launcher

COLUMNS, ROWS = 64, 32
"""Of a tile: rows of 128 bytes in 16 bits."""
PROGRAMS = 1056


@triton.jit(do_not_specialize=["rows", "channels", "programs"])
def _backward(
    grad, hidden, other, partial, rows, channels, programs, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
    EVEN: tl.constexpr, IN_PLACE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    stride = channels // 16 * 16 if EVEN else channels  # so the compiler sees that rows begin at aligned addresses
    for tile in range(program, tl.cdiv(rows, ROWS), programs):
        row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        inside = (row < rows)[:, None] & (column < stride)[None, :]
        at = row[:, None] * stride + column[None, :]
        x = tl.load(hidden + at, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        below = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        slope = below + x * tl.exp(-0.5 * x * x) * 0.3989422804014327
        result = (g * slope).to(grad.dtype.element_ty)
        if IN_PLACE:
            tl.store(grad + at, result, mask=inside)
            tl.store(other + at, (x * below).to(other.dtype.element_ty), mask=inside)
        else:
            tl.store(other + at, result, mask=inside)
        sums += result.to(tl.float32)
    tl.store(partial + program * stride + column, tl.sum(sums, 0), mask=column < stride)


_start_backward = Launcher(_backward)


def backward_(grad: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    return _start(grad, hidden, True)


def backward(grad: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    return _start(grad.contiguous(), hidden, False)


def _start(grad: Tensor, hidden: Tensor, in_place: bool) -> tuple[Tensor, Tensor]:
    hidden = hidden.contiguous()
    rows, channels = hidden.shape
    blocks = -(-channels // COLUMNS)
    programs = max(1, min(-(-rows // ROWS), PROGRAMS // blocks))
    other = torch.empty_like(hidden)
    partial = torch.empty(programs, channels, dtype=torch.float32, device=hidden.device)
    _start_backward(
        (programs, blocks, 1),
        (grad, hidden, other, partial),
        (rows, channels, programs),
        (COLUMNS, ROWS, channels % 16 == 0, in_place),
    )
    return other, partial.sum(0)
