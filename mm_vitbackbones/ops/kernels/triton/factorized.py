"""The kernels of factorised attention; see ``ops/kernels/factorized.py`` for what they compute.

A program works on a window of WIDTH channels that holds GROUP whole heads of one image, and on a run of tiles of BLOCK
tokens. The heads of a window share one WIDTH x WIDTH product, of which the blocks on the diagonal are used: with tensor
cores that is cheaper than rows of 16 bytes. Windows begin at multiples of 8 channels: each thread loads 16 bytes.

Rows are those of all grids, then one class token for each image. The first program of an image adds the class token.
Sums over tokens are kept for each program and added up afterwards, in a fixed order: results are deterministic.
"""

# mypy: ignore-errors

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mm_vitbackbones.ops.kernels.triton.launch import Launcher

WIDTH, ALIGNMENT = 64, 8
"""Channels of a window, and what its first channel is a multiple of."""
PROGRAMS = 528
"""Programs that fill a card: four for each of an H200's 132 multiprocessors."""


@triton.jit
def _window(group, HEADS: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr):
    """Channels of a window, whether they exist, and whether they belong to its heads."""
    first = group * (GROUP * DIM)
    channel = first // 8 * 8 + tl.arange(0, WIDTH)
    mine = (channel >= first) & (channel < first + GROUP * DIM) & (channel < HEADS * DIM)
    return channel, channel < HEADS * DIM, mine


@triton.jit
def _places(channel, mine, DIM: tl.constexpr):
    """Where the blocks on the diagonal of a window are in matrices (h, d, d), and which elements they are."""
    head = channel // DIM
    place = head[:, None] * (DIM * DIM) + (channel % DIM)[:, None] * DIM + (channel % DIM)[None, :]
    return place, (head[:, None] == head[None, :]) & mine[:, None] & mine[None, :]


@triton.jit
def _tile(image, tile, tokens, channel, exists, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """The first row of a tile, in 64 bits, and which of its elements exist. Then their places after the start of this
    row, in rows of C and of 2C channels: in 32 bits, and the same for all tiles."""
    token = tl.arange(0, BLOCK)[:, None]
    mask = (token < tokens - tile * BLOCK) & exists[None, :]
    row = image * tokens + tile * BLOCK
    return row, mask, token * CHANNELS + channel[None, :], token * (2 * CHANNELS) + channel[None, :]


@triton.jit(do_not_specialize=["tokens", "splits", "tiles"])
def contract_part(
    query_key,
    value,
    maxima,
    sums,
    products,
    tokens,
    splits,
    tiles,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """For a run of tokens: the largest key m of each channel, the sums of exp(k - m), and exp(k - m)' v."""
    CHANNELS: tl.constexpr = HEADS * DIM
    split, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channel, exists, mine = _window(tl.program_id(1), HEADS, DIM, GROUP, WIDTH)
    row = tl.num_programs(2).to(tl.int64) * tokens + image
    class_mask = exists & (split == 0)
    largest = tl.load(query_key + row * (2 * CHANNELS) + CHANNELS + channel, mask=class_mask, other=float("-inf"))
    largest = largest.to(tl.float32)
    total = tl.where(class_mask, 1.0, 0.0)
    class_value = tl.load(value + row * CHANNELS + channel, mask=class_mask, other=0.0).to(tl.float32)
    product = tl.zeros([WIDTH, WIDTH], tl.float32) + class_value[None, :]

    for tile in range(split * tiles, split * tiles + tiles):
        row, mask, at, at_query = _tile(image, tile, tokens, channel, exists, CHANNELS, BLOCK)
        k = tl.load(query_key + row * (2 * CHANNELS) + CHANNELS + at_query, mask=mask, other=float("-inf"))
        v = tl.load(value + row * CHANNELS + at, mask=mask, other=0.0)
        k = k.to(tl.float32)
        before, largest = largest, tl.maximum(largest, tl.max(k, 0))
        shift = tl.where(exists, largest, 0.0)
        weight = tl.exp(k - shift[None, :])
        factor = tl.exp(before - shift)
        total = total * factor + tl.sum(weight, 0)
        product = tl.dot(tl.trans(weight.to(v.dtype)), v, product * factor[:, None], input_precision=PRECISION)

    at = (image * splits + split) * CHANNELS + channel
    tl.store(maxima + at, largest, mask=mine)
    tl.store(sums + at, total, mask=mine)
    place, diagonal = _places(channel, mine, DIM)
    tl.store(products + (image * splits + split) * (CHANNELS * DIM) + place, product, mask=diagonal)


@triton.jit(do_not_specialize=["splits", "scale"])
def combine_parts(
    maxima,
    sums,
    products,
    matrices,
    log_sum,
    splits,
    scale,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """The matrices and log-sums of all tokens, for ROWS channels of the keys of one image."""
    CHANNELS: tl.constexpr = HEADS * DIM
    image = tl.program_id(1).to(tl.int64)
    channel, column, part = (
        tl.program_id(0) * ROWS + tl.arange(0, ROWS),
        tl.arange(0, COLUMNS),
        tl.arange(0, PARTS),
    )
    exists = channel < CHANNELS
    maxima += image * splits * CHANNELS
    sums += image * splits * CHANNELS
    products += image * splits * (CHANNELS * DIM)

    largest = tl.full([ROWS], float("-inf"), tl.float32)
    for first in range(0, splits, PARTS):
        at = (first + part)[:, None] * CHANNELS + channel[None, :]
        m = tl.load(maxima + at, mask=(first + part < splits)[:, None] & exists[None, :], other=float("-inf"))
        largest = tl.maximum(largest, tl.max(m, 0))
    shift = tl.where(exists, largest, 0.0)

    total = tl.zeros([ROWS], tl.float32)
    product = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, splits, PARTS):
        at = (first + part)[:, None] * CHANNELS + channel[None, :]
        mask = (first + part < splits)[:, None] & exists[None, :]
        factor = tl.exp(tl.load(maxima + at, mask=mask, other=float("-inf")) - shift[None, :])
        total += tl.sum(factor * tl.load(sums + at, mask=mask, other=0.0), 0)
        p = tl.load(
            products + at[:, :, None] * DIM + column[None, None, :],
            mask=mask[:, :, None] & (column < DIM)[None, None, :],
            other=0.0,
        )
        product += tl.sum(factor[:, :, None] * p, 0)

    tl.store(log_sum + image * CHANNELS + channel, shift + tl.log(total), mask=exists)
    out = matrices + image * (CHANNELS * DIM) + channel[:, None] * DIM + column[None, :]
    tl.store(out, product * (scale / total)[:, None], mask=exists[:, None] & (column < DIM)[None, :])


@triton.jit(do_not_specialize=["tokens", "tiles"])
def apply_matrices(
    query_key,
    position,
    matrices,
    result,
    tokens,
    tiles,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """q M + q * position of a run of tokens; q M of the class token."""
    CHANNELS: tl.constexpr = HEADS * DIM
    split, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channel, exists, mine = _window(tl.program_id(1), HEADS, DIM, GROUP, WIDTH)
    place, diagonal = _places(channel, mine, DIM)
    matrix = tl.load(matrices + image * (CHANNELS * DIM) + place, mask=diagonal, other=0.0)

    row = tl.num_programs(2).to(tl.int64) * tokens + image
    class_mask = exists & (split == 0)
    class_q = tl.load(query_key + row * (2 * CHANNELS) + channel, mask=class_mask, other=0.0).to(tl.float32)
    tl.store(result + row * CHANNELS + channel, tl.sum(class_q[:, None] * matrix, 0), mask=mine & (split == 0))

    narrow = matrix.to(query_key.dtype.element_ty)
    for tile in range(split * tiles, split * tiles + tiles):
        row, mask, at, at_query = _tile(image, tile, tokens, channel, exists, CHANNELS, BLOCK)
        q = tl.load(query_key + row * (2 * CHANNELS) + at_query, mask=mask, other=0.0)
        p = tl.load(position + row * CHANNELS + at, mask=mask, other=0.0).to(tl.float32)
        out = tl.dot(q, narrow, q.to(tl.float32) * p, input_precision=PRECISION)
        tl.store(result + row * CHANNELS + at, out, mask=mask & mine[None, :])


@triton.jit(do_not_specialize=["tokens", "splits", "tiles"])
def apply_backward(
    query_key,
    position,
    matrices,
    of_result,
    of_query_key,
    of_position,
    parts,
    tokens,
    splits,
    tiles,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradients of queries and positions, and for a run of tokens the sum of those of the matrices."""
    CHANNELS: tl.constexpr = HEADS * DIM
    split, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channel, exists, mine = _window(tl.program_id(1), HEADS, DIM, GROUP, WIDTH)
    place, diagonal = _places(channel, mine, DIM)
    matrix = tl.load(matrices + image * (CHANNELS * DIM) + place, mask=diagonal, other=0.0)

    row = tl.num_programs(2).to(tl.int64) * tokens + image
    class_mask = exists & (split == 0)
    class_q = tl.load(query_key + row * (2 * CHANNELS) + channel, mask=class_mask, other=0.0).to(tl.float32)
    class_g = tl.load(of_result + row * CHANNELS + channel, mask=class_mask, other=0.0).to(tl.float32)
    of_class_q = tl.sum(class_g[None, :] * matrix, 1)
    tl.store(of_query_key + row * (2 * CHANNELS) + channel, of_class_q, mask=mine & (split == 0))
    of_matrix = class_q[:, None] * class_g[None, :]

    transposed = tl.trans(matrix.to(query_key.dtype.element_ty))
    for tile in range(split * tiles, split * tiles + tiles):
        row, mask, at, at_query = _tile(image, tile, tokens, channel, exists, CHANNELS, BLOCK)
        q = tl.load(query_key + row * (2 * CHANNELS) + at_query, mask=mask, other=0.0)
        g = tl.load(of_result + row * CHANNELS + at, mask=mask, other=0.0)
        p = tl.load(position + row * CHANNELS + at, mask=mask, other=0.0).to(tl.float32)
        of_matrix = tl.dot(tl.trans(q), g, of_matrix, input_precision=PRECISION)
        wide = g.to(tl.float32)
        of_q = tl.dot(g, transposed, wide * p, input_precision=PRECISION)
        tl.store(of_query_key + row * (2 * CHANNELS) + at_query, of_q, mask=mask & mine[None, :])
        tl.store(of_position + row * CHANNELS + at, wide * q.to(tl.float32), mask=mask & mine[None, :])

    tl.store(parts + (image * splits + split) * (CHANNELS * DIM) + place, of_matrix, mask=diagonal)


@triton.jit(do_not_specialize=["tokens", "tiles", "scale"])
def contract_backward(
    query_key,
    value,
    matrices,
    log_sum,
    of_matrices,
    of_query_key,
    of_value,
    tokens,
    tiles,
    scale,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    TYPE: tl.constexpr,
):
    """The gradients of keys and values of a run of tokens, and of the class token."""
    CHANNELS: tl.constexpr = HEADS * DIM
    split, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channel, exists, mine = _window(tl.program_id(1), HEADS, DIM, GROUP, WIDTH)
    place, diagonal = _places(channel, mine, DIM)
    place += image * (CHANNELS * DIM)
    of_matrix = tl.load(of_matrices + place, mask=diagonal, other=0.0)
    # Of a softmax's gradient: the sum over tokens of P dP.
    centre = tl.sum(of_matrix * tl.load(matrices + place, mask=diagonal, other=0.0), 1)
    of_matrix *= scale
    log_total = tl.load(log_sum + image * CHANNELS + channel, mask=exists, other=0.0)

    row = tl.num_programs(2).to(tl.int64) * tokens + image
    class_mask = exists & (split == 0)
    class_k = tl.load(query_key + row * (2 * CHANNELS) + CHANNELS + channel, mask=class_mask, other=0.0)
    class_v = tl.load(value + row * CHANNELS + channel, mask=class_mask, other=0.0).to(tl.float32)
    class_share = tl.exp(class_k.to(tl.float32) - log_total)
    of_class_v = tl.sum(class_share[:, None] * of_matrix, 0)
    of_class_k = class_share * (tl.sum(class_v[None, :] * of_matrix, 1) - centre)
    tl.store(of_value + row * CHANNELS + channel, of_class_v, mask=mine & (split == 0))
    tl.store(of_query_key + row * (2 * CHANNELS) + CHANNELS + channel, of_class_k, mask=mine & (split == 0))

    narrow = of_matrix.to(TYPE)
    transposed = tl.trans(narrow)
    for tile in range(split * tiles, split * tiles + tiles):
        row, mask, at, at_key = _tile(image, tile, tokens, channel, exists, CHANNELS, BLOCK)
        k = tl.load(query_key + row * (2 * CHANNELS) + CHANNELS + at_key, mask=mask, other=0.0).to(tl.float32)
        v = tl.load(value + row * CHANNELS + at, mask=mask, other=0.0)
        share = tl.exp(k - log_total[None, :])
        of_v = tl.dot(share.to(TYPE), narrow, input_precision=PRECISION)
        of_share = tl.dot(v.to(TYPE), transposed, input_precision=PRECISION)
        of_k = share * (of_share - centre[None, :])
        tl.store(of_value + row * CHANNELS + at, of_v, mask=mask & mine[None, :])
        tl.store(of_query_key + row * (2 * CHANNELS) + CHANNELS + at_key, of_k, mask=mask & mine[None, :])


# ---- launches

BLOCKS = {"contract": 64, "apply": 64, "apply_backward": 64, "contract_backward": 64}
"""Tokens of a tile, by kernel."""
WARPS = {"contract": 4, "apply": 4, "apply_backward": 8, "contract_backward": 8}
"""Of a program, by kernel. Both are for narrow types: in fp32 a larger tile would not fit into the registers."""
WARPS_OF_FP32 = 8


def block_of(kernel: str, dtype: torch.dtype) -> int:
    return BLOCKS[kernel] // 2 if dtype == torch.float32 else BLOCKS[kernel]


class Plan(NamedTuple):
    """How the work of a kernel is cut into programs."""

    grid: tuple[int, int, int]
    splits: int
    """The programs of an image's window: each takes so many tiles of tokens, one after the other."""
    tiles: int
    constants: tuple[Any, ...]
    warps: int


@functools.lru_cache(maxsize=1024)
def plan_of(kernel: str, tokens: int, batch: int, heads: int, dim: int, dtype: torch.dtype) -> Plan:
    """
    Args:
        tokens: of an image's grid.
    """
    block = block_of(kernel, dtype)
    window = windows(heads, dim)
    groups = -(-heads // window["GROUP"])
    count = -(-tokens // block)
    tiles = -(-count // max(1, min(count, PROGRAMS // (batch * groups))))
    splits = -(-count // tiles)
    # Products are exact of narrow types, and nearly those of fp32.
    wide = dtype == torch.float32
    constants = *window.values(), block, "tf32x3" if wide else "tf32"
    return Plan((splits, groups, batch), splits, tiles, constants, WARPS_OF_FP32 if wide else WARPS[kernel])


def windows(heads: int, dim: int) -> dict[str, int]:
    """The constants of a window: as many heads as fit into it, wherever they begin."""
    slack = 0 if dim % ALIGNMENT == 0 else ALIGNMENT - 1
    return {"HEADS": heads, "DIM": dim, "GROUP": min(heads, (WIDTH - slack) // dim), "WIDTH": WIDTH}


start_contract_part, start_combine_parts, start_apply_matrices = map(
    Launcher, (contract_part, combine_parts, apply_matrices)
)
start_apply_backward, start_contract_backward = map(Launcher, (apply_backward, contract_backward))


def attend(query_key: Tensor, value: Tensor, position: Tensor, batch: int, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    query_key, value, position = query_key.contiguous(), value.contiguous(), position.contiguous()
    rows, channels = value.shape
    tokens, dim = rows // batch - 1, channels // heads
    empty = functools.partial(torch.empty, dtype=torch.float32, device=value.device)
    plan = plan_of("contract", tokens, batch, heads, dim, value.dtype)
    maxima, sums = empty(2, batch, plan.splits, channels).unbind()
    products, matrices = empty(batch, plan.splits, channels, dim), empty(batch, heads, dim, dim)
    log_sum, result = empty(batch, channels), torch.empty_like(value)
    tensors = query_key, value, maxima, sums, products
    start_contract_part(plan.grid, tensors, (tokens, plan.splits, plan.tiles), plan.constants, plan.warps)
    _combine(maxima, sums, products, matrices, log_sum, plan.splits, heads, dim)
    plan = plan_of("apply", tokens, batch, heads, dim, value.dtype)
    tensors = query_key, position, matrices, result
    start_apply_matrices(plan.grid, tensors, (tokens, plan.tiles), plan.constants, plan.warps)
    return result, matrices, log_sum


def _combine(
    maxima: Tensor, sums: Tensor, products: Tensor, matrices: Tensor, log_sum: Tensor, splits: int, heads: int, dim: int
) -> None:
    rows, columns = 8, 1 << (dim - 1).bit_length()
    constants = heads, dim, rows, columns, max(1, 8192 // (rows * columns))
    grid = -(-heads * dim // rows), len(matrices), 1
    start_combine_parts(grid, (maxima, sums, products, matrices, log_sum), (splits, dim**-0.5), constants)


def attend_backward(
    query_key: Tensor,
    value: Tensor,
    position: Tensor,
    matrices: Tensor,
    log_sum: Tensor,
    of_result: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    query_key, value, position, of_result = (x.contiguous() for x in (query_key, value, position, of_result))
    batch, heads, dim, _ = matrices.shape
    tokens = len(value) // batch - 1

    plan = plan_of("apply_backward", tokens, batch, heads, dim, value.dtype)
    parts = matrices.new_empty(batch, plan.splits, heads, dim, dim)
    of_query_key, of_value, of_position = map(torch.empty_like, (query_key, value, position))
    tensors = query_key, position, matrices, of_result, of_query_key, of_position, parts
    start_apply_backward(plan.grid, tensors, (tokens, plan.splits, plan.tiles), plan.constants, plan.warps)
    of_matrices = parts.sum(1)
    plan = plan_of("contract_backward", tokens, batch, heads, dim, value.dtype)
    # Shares of a token are below what fp16 can hold.
    kind = tl.bfloat16 if value.dtype == torch.bfloat16 else tl.float32
    tensors = query_key, value, matrices, log_sum, of_matrices, of_query_key, of_value
    numbers = tokens, plan.tiles, dim**-0.5
    start_contract_backward(plan.grid, tensors, numbers, (*plan.constants, kind), plan.warps)
    return of_query_key, of_value, of_position
