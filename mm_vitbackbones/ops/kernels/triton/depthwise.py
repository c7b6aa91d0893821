# mypy: ignore-errors
# ruff: noqa: RUF005 (Triton knows no unpacking)
"""Depthwise convolutions over grids (B, H, W, C), in Triton; see ``ops/kernels/depthwise.py``.

A program has BLOCK_C channels of BLOCK_W columns and goes down the rows of its band. It reads each row K times, moved
by one column each time: once from memory, then from the cache next to the processor. All that it needs of other rows
stays in registers, and so do the weights. What a row needs is requested AHEAD rows before it is computed.
The loops are written with ``while``: Triton's interpreter cannot count to a tensor with recent versions of NumPy.

Sizes and strides are in units of VECTOR elements, which divides all of them: so the compiler knows how many elements
are side by side and aligned. The strides of tensors are those of B, H and W; channels are contiguous.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mm_vitbackbones.ops.kernels.triton.launch import Launcher

SIZES = ["height", "width", "units", "bands", "rows", "length", "where_weight", "where_bias"]
STRIDES = [f"{tensor}_{dim}" for tensor in ("grid", "added", "out", "grad") for dim in "bhw"]


def compiled(kernel):
    """One program for all sizes: otherwise Triton would compile another one where a size is 1 or a multiple of 16."""
    given = kernel.__code__.co_varnames[: kernel.__code__.co_argcount]
    return triton.jit(kernel, do_not_specialize=[name for name in (*SIZES, *STRIDES) if name in given])


@triton.jit
def half_erfc(a):
    """``erfc(a / sqrt(2)) / 2`` for a >= 0: the normal distribution's tail.

    Its logarithm to base 2 is nearly a polynomial. The coefficients minimise the largest error of ``a * half_erfc(a)``,
    which is 6e-8; the polynomial falls everywhere, so no argument is too large.
    """
    p = -1.9919723399652867e-06 * a + 2.92730128421681e-05
    p = p * a - 0.00013809384836349636
    p = p * a - 0.00025342032313346863
    p = p * a + 0.007216363679617643
    p = p * a - 0.05260302498936653
    p = p * a - 0.45917221903800964
    p = p * a - 1.1511096954345703
    p = p * a - 0.9999998807907104
    return tl.exp2(p)


@triton.jit
def gelu(x, tail):
    """``x * Phi(x)`` with the distribution function Phi of the normal distribution, whose ``half_erfc`` of |x| is
    ``tail``."""
    return tl.maximum(x, 0.0) - tl.abs(x) * tail


@triton.jit
def gelu_slope(x, tail):
    """The derivative, ``Phi(x) + x * Phi'(x)``."""
    density = 0.3989422804014327 * tl.exp2(-0.7213475204444817 * x * x)
    return tl.where(x < 0, tail, 1 - tail) + x * density


@triton.jit
def load_row(grid, row, height, width, columns, channels, wanted, stride_h, stride_w, K: tl.constexpr, V: tl.constexpr):
    """K tiles (BLOCK_W, BLOCK_C) of one row, which begin K // 2 columns to the left and then move to the right; zeros
    outside of the grid."""
    inside = (row >= 0) & (row < height)
    start = grid + row.to(tl.int64) * stride_h * V
    tiles = ()
    for j in tl.static_range(K):
        moved = columns + (j - K // 2)
        mask = inside & (moved >= 0) & (moved < width)
        tile = tl.load(start + moved[:, None] * (stride_w * V) + channels[None, :], mask[:, None] & wanted, other=0.0)
        tiles = tiles + (tile,)
    return tiles


@triton.jit
def load_taps(weight, channels, many, K: tl.constexpr, FLIP: tl.constexpr):
    """The weights of each place of the window, (1, BLOCK_C) in fp32."""
    taps = ()
    for t in tl.static_range(K * K):
        place = K * K - 1 - t if FLIP else t
        tap = tl.load(weight + channels * (K * K) + place, channels < many, other=0.0)
        taps = taps + (tap.to(tl.float32)[None, :],)
    return taps


@triton.jit
def zeros(COUNT: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr):
    tiles = ()
    for _ in tl.static_range(COUNT):
        tiles = tiles + (tl.zeros((BLOCK_W, BLOCK_C), tl.float32),)
    return tiles


@compiled
def convolve(
    grid,
    added,
    weight,
    bias,
    out,
    height,
    width,
    units,
    bands,
    rows,
    grid_b,
    grid_h,
    grid_w,
    added_b,
    added_h,
    added_w,
    out_b,
    out_h,
    out_w,
    K: tl.constexpr,
    BIAS: tl.constexpr,
    GELU: tl.constexpr,
    ADD: tl.constexpr,
    FLIP: tl.constexpr,
    V: tl.constexpr,
    AHEAD: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """``out = gelu(conv(grid) + bias) + added``; with FLIP, the transposed convolution."""
    pad: tl.constexpr = K // 2
    blocks_c, blocks_w = tl.cdiv(units * V, BLOCK_C), tl.cdiv(width, BLOCK_W)
    program = tl.program_id(0)
    block_c, program = program % blocks_c, program // blocks_c
    block_w, program = program % blocks_w, program // blocks_w
    band, image = program % bands, (program // bands).to(tl.int64)
    first = band * rows
    last = tl.minimum(first + rows, height)
    channels = block_c * BLOCK_C + tl.arange(0, BLOCK_C)
    columns = block_w * BLOCK_W + tl.arange(0, BLOCK_W)
    wanted = (channels < units * V)[None, :]
    stored = (columns < width)[:, None] & wanted
    grid += image * grid_b * V
    added += image * added_b * V
    out += image * out_b * V
    taps = load_taps(weight, channels, units * V, K, FLIP)
    start = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    if BIAS:
        start += tl.load(bias + channels, channels < units * V, other=0.0).to(tl.float32)[None, :]
    sums = ()  # of the output rows row - pad to row + pad
    for _ in tl.static_range(K):
        sums = sums + (start,)
    row = first - pad
    below = tl.minimum(last + pad, height)
    queue = ()
    for i in tl.static_range(AHEAD):
        queue = queue + load_row(grid, row + i, below, width, columns, channels, wanted, grid_h, grid_w, K, V)
    while row < last + pad:
        tiles = queue[:K]
        ahead = load_row(grid, row + AHEAD, below, width, columns, channels, wanted, grid_h, grid_w, K, V)
        partial = ()
        for m in tl.static_range(K):
            s = sums[m]
            for j in tl.static_range(K):
                s += tiles[j].to(tl.float32) * taps[(K - 1 - m) * K + j]
            partial = partial + (s,)
        done = row - pad
        if done >= first:
            y = partial[0]
            if GELU:
                y = gelu(y, half_erfc(tl.abs(y)))
            if ADD:
                at = added + done.to(tl.int64) * added_h * V
                y += tl.load(at + columns[:, None] * (added_w * V) + channels[None, :], stored, other=0.0).to(
                    tl.float32
                )
            at = out + done.to(tl.int64) * out_h * V
            tl.store(at + columns[:, None] * (out_w * V) + channels[None, :], y.to(out.dtype.element_ty), stored)
        sums = partial[1:] + (start,)
        queue = queue[K:] + ahead
        row += 1


@triton.jit
def store_partials(sums, total, partials, channels, many, where_weight, where_bias, K: tl.constexpr):
    """The sums over the columns of a program: (C, K * K) for the weight, (C,) for the bias."""
    for t in tl.static_range(K * K):
        tl.store(partials + where_weight + channels * (K * K) + t, tl.sum(sums[t], axis=0), channels < many)
    tl.store(partials + where_bias + channels, tl.sum(total, axis=0), channels < many)


@compiled
def correlate(
    grad,
    grid,
    partials,
    height,
    width,
    units,
    bands,
    rows,
    length,
    where_weight,
    where_bias,
    grad_b,
    grad_h,
    grad_w,
    grid_b,
    grid_h,
    grid_w,
    K: tl.constexpr,
    V: tl.constexpr,
    AHEAD: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The gradients of the weight and the bias of a convolution without GELU: ``partials`` (programs, length) has one
    row for each program of the same channels."""
    pad: tl.constexpr = K // 2
    blocks_c, blocks_w = tl.cdiv(units * V, BLOCK_C), tl.cdiv(width, BLOCK_W)
    program = tl.program_id(0)
    block_c, program = program % blocks_c, program // blocks_c
    partials += program.to(tl.int64) * length
    block_w, program = program % blocks_w, program // blocks_w
    band, image = program % bands, (program // bands).to(tl.int64)
    first = band * rows
    last = tl.minimum(first + rows, height)
    channels = block_c * BLOCK_C + tl.arange(0, BLOCK_C)
    columns = block_w * BLOCK_W + tl.arange(0, BLOCK_W)
    wanted = (channels < units * V)[None, :]
    grid += image * grid_b * V
    grad += image * grad_b * V
    sums = zeros(K * K, BLOCK_W, BLOCK_C)
    total = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    grads = zeros(K, BLOCK_W, BLOCK_C)  # of the output rows row - pad to row + pad, zeros outside of the band
    row = first - pad
    below = tl.minimum(last + pad, height)
    queue, news = (), ()
    for i in tl.static_range(AHEAD):
        queue = queue + load_row(grid, row + i, below, width, columns, channels, wanted, grid_h, grid_w, K, V)
        news = news + load_row(grad, first + i, last, width, columns, channels, wanted, grad_h, grad_w, 1, V)
    while row < last + pad:
        tiles, new = queue[:K], news[:1]
        ahead = load_row(grid, row + AHEAD, below, width, columns, channels, wanted, grid_h, grid_w, K, V)
        later = load_row(grad, row + pad + AHEAD, last, width, columns, channels, wanted, grad_h, grad_w, 1, V)
        grads = grads[1:] + (new[0].to(tl.float32),)
        total += grads[K - 1]
        more = ()
        for i in tl.static_range(K):
            for j in tl.static_range(K):
                more = more + (sums[i * K + j] + grads[K - 1 - i] * tiles[j].to(tl.float32),)
        sums = more
        queue = queue[K:] + ahead
        news = news[1:] + later
        row += 1
    store_partials(sums, total, partials, channels, units * V, where_weight, where_bias, K)


@compiled
def correlate_gelu(
    grad,
    grid,
    weight,
    bias,
    out,
    activation,
    partials,
    height,
    width,
    units,
    bands,
    rows,
    length,
    where_weight,
    where_bias,
    grad_b,
    grad_h,
    grad_w,
    grid_b,
    grid_h,
    grid_w,
    out_b,
    out_h,
    out_w,
    K: tl.constexpr,
    BIAS: tl.constexpr,
    KEEP: tl.constexpr,
    V: tl.constexpr,
    AHEAD: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """``out = grad * gelu'(conv(grid) + bias)``, and the gradients of the weight and the bias as in ``correlate``. With
    KEEP, ``activation = gelu(conv(grid) + bias)``, whose strides are those of ``out``."""
    pad: tl.constexpr = K // 2
    blocks_c, blocks_w = tl.cdiv(units * V, BLOCK_C), tl.cdiv(width, BLOCK_W)
    program = tl.program_id(0)
    block_c, program = program % blocks_c, program // blocks_c
    partials += program.to(tl.int64) * length
    block_w, program = program % blocks_w, program // blocks_w
    band, image = program % bands, (program // bands).to(tl.int64)
    first = band * rows
    last = tl.minimum(first + rows, height)
    channels = block_c * BLOCK_C + tl.arange(0, BLOCK_C)
    columns = block_w * BLOCK_W + tl.arange(0, BLOCK_W)
    wanted = (channels < units * V)[None, :]
    stored = (columns < width)[:, None] & wanted
    grid += image * grid_b * V
    grad += image * grad_b * V
    out += image * out_b * V
    activation += image * out_b * V
    taps = load_taps(weight, channels, units * V, K, False)
    start = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    if BIAS:
        start += tl.load(bias + channels, channels < units * V, other=0.0).to(tl.float32)[None, :]
    sums = zeros(K * K, BLOCK_W, BLOCK_C)
    total = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    below = tl.minimum(last + pad, height)
    window = ()  # the rows above, then the row itself and those below
    for i in tl.static_range(K - 1):
        row = first + (i - pad)
        window = window + load_row(grid, row, below, width, columns, channels, wanted, grid_h, grid_w, K, V)
    queue, news = (), ()
    for i in tl.static_range(AHEAD):
        row = first + i
        queue = queue + load_row(grid, row + pad, below, width, columns, channels, wanted, grid_h, grid_w, K, V)
        news = news + load_row(grad, row, last, width, columns, channels, wanted, grad_h, grad_w, 1, V)
    row = first
    while row < last:
        window = window + queue[:K]
        d = news[0].to(tl.float32)
        ahead = load_row(grid, row + pad + AHEAD, below, width, columns, channels, wanted, grid_h, grid_w, K, V)
        later = load_row(grad, row + AHEAD, last, width, columns, channels, wanted, grad_h, grad_w, 1, V)
        y = start
        for t in tl.static_range(K * K):
            y += window[t].to(tl.float32) * taps[t]
        half = half_erfc(tl.abs(y))
        d *= gelu_slope(y, half)
        places = row.to(tl.int64) * out_h * V + columns[:, None] * (out_w * V) + channels[None, :]
        tl.store(out + places, d.to(out.dtype.element_ty), stored)
        if KEEP:
            tl.store(activation + places, gelu(y, half).to(out.dtype.element_ty), stored)
        total += d
        more = ()
        for t in tl.static_range(K * K):
            more = more + (sums[t] + d * window[t].to(tl.float32),)
        sums = more
        window = window[K:]
        queue = queue[K:] + ahead
        news = news[1:] + later
        row += 1
    store_partials(sums, total, partials, channels, units * V, where_weight, where_bias, K)


start_convolve, start_correlate, start_correlate_gelu = map(Launcher, (convolve, correlate, correlate_gelu))
