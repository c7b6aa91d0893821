"""Shares of channels; see ``ops.kernels.covariance``.

In the forward pass a program takes a tile of rows of one matrix, in the backward pass a whole matrix, tile by tile, as
the columns have sums, too.
"""

# mypy: ignore-errors

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mm_vitbackbones.ops.kernels.covariance import SHORTEST
from mm_vitbackbones.ops.kernels.triton.launch import Launcher

TILE = 2048
"""Elements of a tile, at least one row."""
LEAST = tl.constexpr(SHORTEST)


@triton.jit
def _tile(products, lengths, t, matrix, row, column, D: tl.constexpr):
    """Of some rows of a matrix: where they are, the cosines, what products are divided by, and the shares."""
    inside = (row < D)[:, None] & (column < D)[None, :]
    at = matrix * D * D + row[:, None] * D + column[None, :]
    of_query = tl.maximum(tl.load(lengths + matrix * 2 * D + row, mask=row < D, other=1.0), LEAST)
    of_key = tl.maximum(tl.load(lengths + matrix * 2 * D + D + column, mask=column < D, other=1.0), LEAST)
    over = of_query[:, None] * of_key[None, :]
    cosines = tl.load(products + at, mask=inside, other=0.0).to(tl.float32) / over
    logits = tl.where((column < D)[None, :], cosines * t, float("-inf"))
    powers = tl.exp(logits - tl.max(logits, 1)[:, None])
    return at, inside, cosines, over, powers / tl.sum(powers, 1)[:, None]


@triton.jit(do_not_specialize=["heads"])
def _forward(
    products, lengths, temperature, out, heads, D: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    matrix = tl.program_id(0).to(tl.int64)
    t = tl.load(temperature + matrix % heads).to(tl.float32)
    row, column = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    at, inside, _, _, shares = _tile(products, lengths, t, matrix, row, column, D)
    tl.store(out + at, shares.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["heads"])
def _backward(
    grad, products, lengths, temperature, of_products, pulls, partial, heads, D: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    matrix = tl.program_id(0).to(tl.int64)
    t = tl.load(temperature + matrix % heads).to(tl.float32)
    column = tl.arange(0, COLUMNS)
    of_temperature, of_columns = tl.zeros((ROWS,), tl.float32), tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, D, ROWS):
        row = first + tl.arange(0, ROWS)
        at, inside, cosines, over, shares = _tile(products, lengths, t, matrix, row, column, D)
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        of_logits = shares * (g - tl.sum(g * shares, 1)[:, None])
        pulled = tl.where(inside, of_logits * cosines, 0.0)
        of_row = tl.sum(pulled, 1)
        of_temperature += of_row
        of_columns += tl.sum(pulled, 0)
        tl.store(of_products + at, (of_logits * t / over).to(of_products.dtype.element_ty), mask=inside)
        length = tl.maximum(tl.load(lengths + matrix * 2 * D + row, mask=row < D, other=1.0), LEAST)
        tl.store(pulls + matrix * 2 * D + row, of_row * t / (length * length), mask=row < D)
    length = tl.maximum(tl.load(lengths + matrix * 2 * D + D + column, mask=column < D, other=1.0), LEAST)
    tl.store(pulls + matrix * 2 * D + D + column, of_columns * t / (length * length), mask=column < D)
    tl.store(partial + matrix, tl.sum(of_temperature, 0))


_start_forward, _start_backward = Launcher(_forward), Launcher(_backward)


def _sizes(dim: int) -> tuple[int, int, int]:
    """Channels, and columns and rows of a tile."""
    columns = triton.next_power_of_2(dim)
    return dim, columns, max(1, min(columns, TILE // columns))


def shares(products: Tensor, lengths: Tensor, temperature: Tensor) -> Tensor:
    products, lengths = products.contiguous(), lengths.contiguous()
    sizes = _sizes(products.shape[-1])
    out = torch.empty_like(products)
    grid = len(products), -(-sizes[0] // sizes[2]), 1
    _start_forward(grid, (products, lengths, temperature, out), (len(temperature),), sizes)
    return out


def shares_backward(
    grad: Tensor, products: Tensor, lengths: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grad, products, lengths = grad.contiguous(), products.contiguous(), lengths.contiguous()
    heads = len(temperature)
    of_products, pulls = torch.empty_like(products), torch.empty_like(lengths)
    partial = lengths.new_empty(len(products))
    tensors = grad, products, lengths, temperature, of_products, pulls, partial
    _start_backward((len(products), 1, 1), tensors, (heads,), _sizes(products.shape[-1]))
    return of_products, pulls, partial.view(-1, heads).sum(0).view_as(temperature)
