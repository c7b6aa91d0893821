"""The gradients of a scaled branch; see ``ops.kernels.scale``.

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


@triton.jit(do_not_specialize=["rows", "rows_of_sample", "channels", "programs"])
def _backward(
    grad, branch, factor, scale, grad_branch, partial, rows, rows_of_sample, channels, programs, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, FACTOR: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    stride = channels // 16 * 16 if EVEN else channels  # so the compiler sees that rows begin at aligned addresses
    s = tl.load(scale + column, mask=column < stride, other=0.0).to(tl.float32)
    for tile in range(program, tl.cdiv(rows, ROWS), programs):
        row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        inside = (row < rows)[:, None] & (column < stride)[None, :]
        at = row[:, None] * stride + column[None, :]
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        if FACTOR:
            g *= tl.load(factor + row // rows_of_sample, mask=row < rows, other=0.0).to(tl.float32)[:, None]
        sums += g * tl.load(branch + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad_branch + at, (g * s[None, :]).to(grad_branch.dtype.element_ty), mask=inside)
    tl.store(partial + program * stride + column, tl.sum(sums, 0), mask=column < stride)


_start_backward = Launcher(_backward)


def backward(grad: Tensor, branch: Tensor, factor: Tensor | None, scale: Tensor) -> tuple[Tensor, Tensor]:
    grad, branch = grad.contiguous(), branch.contiguous()
    channels = branch.shape[-1]
    rows = branch.numel() // channels
    blocks = -(-channels // COLUMNS)
    programs = max(1, min(-(-rows // ROWS), PROGRAMS // blocks))
    grad_branch = torch.empty_like(branch)
    partial = torch.empty(programs, channels, dtype=torch.float32, device=branch.device)
    _start_backward(
        (programs, blocks, 1),
        (grad, branch, grad if factor is None else factor, scale, grad_branch, partial),
        (rows, rows // branch.shape[0], channels, programs),
        (COLUMNS, ROWS, factor is not None, channels % 16 == 0),
    )
    return grad_branch, partial.sum(0)
