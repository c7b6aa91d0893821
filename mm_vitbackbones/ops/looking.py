"""The attention weights of chosen queries: rows of the softmax, for somebody who looks at them.

No forward pass computes them, as PyTorch's kernels and ours never store a matrix of queries by keys. So each attention
layer has a method ``looks_at`` next to its ``forward``, with the same arguments. It projects queries and keys once and
gives the rows of the queries that are asked for, so that nobody needs the whole matrix of a large map either.

B images, h heads, Q chosen queries, M keys of each, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mm_vitbackbones.ops import anysize, attention, head_maps, pooling
from mm_vitbackbones.ops.head_maps import by_head
from mm_vitbackbones.ops.windows import windows_of

Size = tuple[int, int]
Bias = Callable[[Tensor, Tensor, Tensor], Tensor]


class Lattice(NamedTuple):
    """Where the cells of a map are, measured in cells of the grid that enters the attention: the centre of cell i is at
    first + i * step, in rows and in columns."""

    size: Size
    step: tuple[float, float] = (1.0, 1.0)
    first: tuple[float, float] = (0.5, 0.5)

    def centres(self, axis: int) -> Tensor:
        """Of the rows (axis 0) or the columns (axis 1)."""
        return self.first[axis] + self.step[axis] * torch.arange(self.size[axis], dtype=torch.float64)


@dataclass(frozen=True)
class Shares:
    """What an attention layer looks at, for one input."""

    rows: Callable[[Tensor], Tensor]
    """Queries by their numbers (Q,) -> their weights (B, h, Q, M)."""
    places: Callable[[Tensor], Tensor]
    """The same numbers -> the cell of each key, counted row by row (Q or 1, M). Below 0: a key without a place, that
    is, a class token or padding."""
    num_queries: int
    queries: Lattice | None = None
    """The cells of the queries after the first ``others``; None where the layer takes tokens and knows no grid."""
    keys: Lattice | None = None
    extent: Size = (0, 0)
    """Rows and columns of the grid that enters."""
    others: int = 0
    """Class and register tokens, which are the first queries."""
    signed: bool = False
    """Whether the weights may be negative and do not sum to one (CoaT)."""
    alike: Callable[[int], Tensor] | None = None
    """With windows: the queries that have the same place in their windows as this one."""

    def on_grid(self, sides: Size) -> Shares:
        """Of tokens: the last ones are a grid of these sides."""
        if self.queries is not None:
            return self
        count = self.places(torch.zeros(1, dtype=torch.long)).shape[-1]
        others = count - sides[0] * sides[1]
        lattice = Lattice(sides)
        places = self.places
        return replace(
            self,
            places=lambda queries: places(queries) - others,
            queries=lattice,
            keys=lattice,
            extent=sides,
            others=min(others, self.num_queries),
        )


def _all(count: int) -> Callable[[Tensor], Tensor]:
    """The places of keys that all queries share."""
    return lambda queries: torch.arange(count, device=queries.device).unsqueeze(0)


def of_tokens(query: Tensor, key: Tensor, num_heads: int, mix: nn.Module | None = None) -> Shares:
    """softmax(q k' / sqrt(d)): tokens (B, N, C) over tokens (B, M, C).

    Args:
        mix: a linear map of the heads, before the softmax (CaiT).
    """
    q, k = by_head(query, num_heads), by_head(key, num_heads)

    def rows(queries: Tensor) -> Tensor:
        scores = q[:, :, queries] * q.shape[-1] ** -0.5 @ k.mT
        return (scores if mix is None else mix(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)).softmax(-1)

    return Shares(rows, _all(k.shape[2]), q.shape[2])


def of_grids(query: Tensor, key: Tensor, num_heads: int, extent: Size, keys: Lattice) -> Shares:
    """``of_tokens`` of the tokens of a grid over those of another one, which ``keys`` describes."""
    found = of_tokens(query, key, num_heads)
    return replace(found, queries=Lattice(extent), keys=keys, extent=extent)


def _terms(query: Tensor, rows: Tensor, columns: Tensor, numbers: Tensor) -> Tensor:
    """q . rows[y_q, y_k] + q . columns[x_q, x_k]: (B, h, Q, d) -> (B, h, Q, H' * W').

    Args:
        rows: (H, H', d), of pairs of rows; see ``attention.by_distance``.
        columns: (W, W', d).
        numbers: of the queries in a grid of H rows and W columns.
    """
    width = len(columns)
    of_rows = torch.einsum("bhqd,qzd->bhqz", query, rows[numbers // width])
    of_columns = torch.einsum("bhqd,qzd->bhqz", query, columns[numbers % width])
    return (of_rows.unsqueeze(-1) + of_columns.unsqueeze(-2)).flatten(-2)


def by_distance(
    query: Tensor, key: Tensor, tables: tuple[Tensor, Tensor], queries: Lattice, keys: Lattice, extent: Size
) -> Shares:
    """Attention of all over all with terms for the distance: heads (B, h, N, d) over heads (B, h, M, d).

    Args:
        tables: as in ``_terms``.
    """

    def rows(queries: Tensor) -> Tensor:
        q = query[:, :, queries]
        return (q * q.shape[-1] ** -0.5 @ key.mT + _terms(q, *tables, queries)).softmax(-1)

    return Shares(rows, _all(key.shape[2]), query.shape[2], queries, keys, extent)


def strided(size: Size, stride: int) -> Lattice:
    """The cells of a map that a convolution makes of a grid, with the first cell as its first centre."""
    return Lattice(size, (float(stride), float(stride)))


def _products(query: Tensor, key: Tensor, window: Tensor) -> Tensor:
    """Of queries (B, h, Q, d) with the keys (K, h, m, d) of their windows (B, Q): (B, h, Q, m). The keys of a window
    are not copied for each of its queries."""
    out = query.new_empty(*query.shape[:3], key.shape[2])
    for of_queries, numbers, result in zip(query, window, out, strict=True):
        for number in numbers.unique():
            chosen = (numbers == number).nonzero().flatten()
            result[:, chosen] = of_queries[:, chosen] @ key[number].mT
    return out


def in_windows(grid: Tensor, qkv: nn.Module, num_heads: int, side: int, shift: int, bias: Bias) -> Shares:
    """Attention in the windows of a grid (B, H, W, C), as ``windows.attention`` makes them.

    Args:
        qkv: a linear map of tokens, C -> 3C.
        bias: what is added to the scores: of queries (B, h, Q, d), their places in their windows (Q,) and the groups of
            their windows (Q,), see ``windows.Windows`` -> (B or 1, h, Q, n).
    """
    batch, height, width, _ = grid.shape
    count = height * width
    windows = windows_of(batch, height, width, side, shift, grid.device)
    n = windows.places
    tokens = grid.flatten(0, 2)
    of_windows = qkv(windows.gather(tokens, tokens.new_zeros(tokens.shape[1]))).unflatten(0, (-1, n))
    query, key, _ = head_maps.heads_of(of_windows, num_heads)
    cells = (windows.tokens % count).clone()
    cells[windows.padding] = -1
    cells = cells.view(-1, n)
    sizes = torch.tensor(windows.sizes, device=grid.device)
    group = torch.repeat_interleave(torch.arange(len(sizes), device=grid.device), sizes)
    origin = windows.origin.view(batch, count)

    def rows(queries: Tensor) -> Tensor:
        window, place = origin[:, queries] // n, origin[:, queries] % n  # (B, Q)
        q = query[window, :, place].transpose(1, 2)  # (B, h, Q, d)
        scores = _products(q * q.shape[-1] ** -0.5, key, window)
        return (scores + bias(q, place[0], group[window[0]])).softmax(-1)

    def alike(query: int) -> Tensor:
        same = cells[:, int(origin[0, query]) % n]
        return same[(same >= 0) & (windows.tokens.view(-1, n)[:, 0] < count)].sort()[0]

    def places(queries: Tensor) -> Tensor:
        return cells[origin[0, queries] // n]

    lattice = Lattice((height, width))
    return Shares(rows, places, count, lattice, lattice, (height, width), alike=alike)


def in_pooled_windows(
    query: Tensor,
    key: Tensor,
    tables: tuple[Tensor, Tensor],
    sides: Size,
    queries: Lattice,
    keys: Lattice,
    extent: Size,
) -> Shares:
    """Attention in windows of pooled queries and keys (MViTv2): heads of a grid (B, H, W, h, d) over those of another.

    Args:
        tables: of the places in a window, as in ``_terms``.
        sides: of the windows of queries and of keys.
    """
    batch, height, width = query.shape[:3]
    side, key_side = sides
    columns = anysize.ceil_div(width, side)
    counts = anysize.ceil_div(height, side), columns
    of_keys = pooling.cut(key, key_side, counts)  # (B * K, h, m, d)
    key_height, key_width = keys.size
    numbers = torch.arange(key_height * key_width, device=query.device).view(1, key_height, key_width, 1, 1) + 1
    cells = pooling.cut(numbers, key_side, counts)[:, 0, :, 0] - 1  # (K, m): padding is -1

    def where(queries: Tensor) -> tuple[Tensor, Tensor]:
        """The window of each query, and its place in it."""
        y, x = queries // width, queries % width
        return (y // side) * columns + x // side, (y % side) * side + x % side

    def rows(queries: Tensor) -> Tensor:
        window, place = where(queries)
        q = query.flatten(1, 2)[:, queries].transpose(1, 2)
        offset = torch.arange(batch, device=query.device)[:, None] * (len(of_keys) // batch)
        scores = _products(q * q.shape[-1] ** -0.5, of_keys, window + offset)
        return (scores + _terms(q, *tables, place)).softmax(-1)

    def alike(query: int) -> Tensor:
        every = torch.arange(height * width)
        return every[where(every)[1] == where(torch.tensor([query]))[1]]

    def places(queries: Tensor) -> Tensor:
        return cells[where(queries)[0]]

    return Shares(rows, places, height * width, queries, keys, extent, alike=alike)


def of_pooled(
    query: Tensor,
    key: Tensor,
    rows: Tensor,
    columns: Tensor,
    windows: Size | None,
    strides: Size,
    extent: Size,
) -> Shares:
    """Of the arguments of ``pooling.attend``, without values.

    Args:
        strides: of the convolutions that pooled the queries and the keys.
        extent: rows and columns of the grid that they were pooled from.
    """
    queries, keys = (
        strided((heads.shape[1], heads.shape[2]), stride) for heads, stride in zip((query, key), strides, strict=True)
    )
    query_sides = (windows[0], windows[0]) if windows else query.shape[1:3]
    key_sides = (windows[1], windows[1]) if windows else key.shape[1:3]
    pairs = zip((rows, columns), query_sides, key_sides, strict=True)
    of_rows, of_columns = (attention.by_distance(table, *sides) for table, *sides in pairs)
    if windows is not None:
        return in_pooled_windows(query, key, (of_rows, of_columns), windows, queries, keys, extent)
    query, key = (x.flatten(1, 2).transpose(1, 2) for x in (query, key))
    return by_distance(query, key, (of_rows, of_columns), queries, keys, extent)


def bias_of_distances(tables: tuple[Tensor, Tensor] | None) -> Bias:
    """``in_windows``' bias of terms for the distance in a window, or of none."""

    def bias(query: Tensor, place: Tensor, _: Tensor) -> Tensor:
        return query.new_zeros(1) if tables is None else _terms(query, *tables, place)

    return bias


def factorized(query: Tensor, key: Tensor, num_heads: int, extent: Size) -> Shares:
    """The effective weights of factorised attention (CoaT): tokens (B, 1 + N, C), the class token first, over the same.

    The result of query i is the sum over j of (q_i . softmax(K)_j) v_j / sqrt(d), and the softmax is over all tokens,
    in each channel. So the weights are these products. They may be negative, and do not sum to one. The relative
    positions are a convolution of the values, and not part of them.
    """
    q, k = by_head(query, num_heads), by_head(key.softmax(1), num_heads)
    lattice = Lattice(extent)

    def rows(queries: Tensor) -> Tensor:
        return q[:, :, queries] * q.shape[-1] ** -0.5 @ k.mT

    def places(queries: Tensor) -> Tensor:
        return torch.arange(k.shape[2], device=queries.device).unsqueeze(0) - 1

    return Shares(rows, places, q.shape[2], lattice, lattice, extent, others=1, signed=True)
