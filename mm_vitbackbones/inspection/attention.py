"""What the attention layers of a backbone look at, and how far.

The layers are caught by hooks while the backbone runs as always, and looked at one after the other: nothing of one is
kept when the next one runs. Rows of the softmax are computed for some queries at a time.

B images, h heads, Q chosen queries, M keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mm_vitbackbones.backbones.base import AttentionLayer, Backbone
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.ops.looking import Lattice, Shares

BAND = 2**20
"""Weights that are computed at a time."""

MOST = 2**26
"""Weights of a layer that are computed for the mean of all queries. In a larger layer some queries stand for all."""


class Seen(NamedTuple):
    """An attention layer while it looks at an image."""

    layer: AttentionLayer
    number: int
    """Of the layer, from 0."""
    shares: Shares
    stride: float
    """Pixels between the cells of the grid that enters."""

    def query_at(self, x: float, y: float) -> int:
        """The number of the query that is the nearest to a pixel."""
        cells = _lattice(self.shares.queries)
        row, column = (
            min(max(math.floor((pixel / self.stride - first) / step + 0.5), 0), size - 1)
            for pixel, first, step, size in zip((y, x), cells.first, cells.step, cells.size, strict=True)
        )
        return self.shares.others + row * cells.size[1] + column

    def maps(self, queries: Tensor) -> Tensor:
        """The weights of chosen queries on the grid of the keys, (B, h, Q, H', W'). What class tokens and padding get
        is left out."""
        return on_grid(self.shares, self.shares.rows(queries), queries)

    def joined(self, query: int) -> Tensor | None:
        """With windows: the weights of the queries that have the same place in all windows, in one map (B, h, H', W').
        None without windows."""
        if self.shares.alike is None:
            return None
        return sum_on_grid(self.shares, self.shares.alike(query))


def _lattice(cells: Lattice | None) -> Lattice:
    assert cells is not None, "the layer takes tokens: `on_grid` says their grid"
    return cells


def on_grid(shares: Shares, rows: Tensor, queries: Tensor) -> Tensor:
    """Rows (B, h, Q, M) as maps (B, h, Q, H', W') of the grid of the keys."""
    height, width = _lattice(shares.keys).size
    places = shares.places(queries).expand(len(queries), -1)
    index = torch.where(places < 0, height * width, places).expand_as(rows)
    maps = rows.new_zeros(*rows.shape[:3], height * width + 1).scatter_add_(-1, index, rows)
    return maps[..., :-1].unflatten(-1, (height, width))


def sum_on_grid(shares: Shares, queries: Tensor) -> Tensor:
    """The sum over queries of ``on_grid``, (B, h, H', W'), which never holds a map for each of them."""
    height, width = _lattice(shares.keys).size
    total: Any = None
    for part in bands(shares, queries):
        rows = shares.rows(part)
        places = shares.places(part).expand(len(part), -1)
        index = torch.where(places < 0, height * width, places).flatten().expand(*rows.shape[:2], -1)
        if total is None:
            total = rows.new_zeros(*rows.shape[:2], height * width + 1)
        total.scatter_add_(-1, index, rows.flatten(2))
    return total[..., :-1].unflatten(-1, (height, width))


def bands(shares: Shares, queries: Tensor) -> Iterator[Tensor]:
    """Parts of the queries, each with at most ``BAND`` weights, but one query at least."""
    if not len(queries):
        return
    row = shares.rows(queries[:1])
    yield from queries.split(max(1, BAND // row.numel()))


def look(backbone: Backbone, image: Tensor, see: Callable[[Seen], Any]) -> list[Any]:
    """Runs a backbone on an image and has each attention layer looked at.

    Args:
        image: (B, in_channels, H, W).
        see: what to do with a layer, and what to keep of it.

    Returns:
        what ``see`` gave, in the order of the layers.

    Raises:
        UserError: the network has no attention over places.
    """
    layers = backbone.attentions()
    if not layers:
        raise UserError(f"{type(backbone).__name__} has no attention layers that can be looked at")
    found: dict[int, Any] = {}
    size = int(image.shape[2]), int(image.shape[3])

    def hook(number: int, layer: AttentionLayer) -> Callable[..., None]:
        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            shares = layer.module.looks_at(*args, **kwargs)  # type: ignore[operator]
            shares = shares.on_grid(backbone.token_sides(layer.stage, *size))
            # Where queries are pooled, the stride of the stage is theirs.
            stride = backbone.token_stride(layer.stage) / _lattice(shares.queries).step[0]
            found[number] = see(Seen(layer, number, shares, stride))

        return before

    with ExitStack() as stack, torch.no_grad():
        for number, layer in enumerate(layers):
            handle = layer.module.register_forward_pre_hook(hook(number, layer), with_kwargs=True)
            stack.callback(handle.remove)
        backbone(image)
    return [found[number] for number in sorted(found)]


# ---- distance and entropy


class Spread(NamedTuple):
    """How far and how widely a layer looks: means over queries, for each head."""

    distance: Tensor
    """(h,): the distance of a query from its keys, weighted; in rows as a share of the map's rows, plus the same of
    columns."""
    entropy: Tensor
    """(h,): of the weights of a query, in nats."""
    keys: int
    """Keys of a query, with a place."""
    queries: int
    """How many queries the means are of."""


def spread(shares: Shares, most: int | None = MOST) -> Spread | None:
    """The attention distance and entropy of the PiT paper (section 3.3), averaged over all queries:

        distance  D_i = sum over j of a_ij |p_i - p_j|_1,  p = (x / W, y / H)
        entropy   E_i = - sum over j of a_ij log a_ij

    Queries and keys are tokens with a place, so class tokens and padding are left out, and the rows of the rest are
    made to sum to one. Of weights with a sign (CoaT) the magnitudes are taken.

    Args:
        most: weights to compute: of a layer with more of them, queries at even steps stand for all.

    Returns:
        None, if no query has a place.
    """
    if shares.others >= shares.num_queries:
        return None
    queries = evenly(shares, most)
    of_queries, of_keys = (positions(_lattice(cells), shares.extent) for cells in (shares.queries, shares.keys))
    distance = entropy = torch.zeros((), dtype=torch.float64)
    keys = count = 0
    for part in bands(shares, queries):
        places = shares.places(part)
        inside = places >= 0
        rows = shares.rows(part)
        rows = (rows.abs() if shares.signed else rows) * inside
        rows = rows / rows.sum(-1, keepdim=True)
        far = (of_queries[part - shares.others].unsqueeze(1) - of_keys[places.clamp(min=0)]).abs().sum(-1)
        far = far.to(rows.dtype).expand(len(part), -1)
        distance = distance + torch.einsum("bhqm,qm->h", rows, far).double()
        entropy = entropy + torch.special.entr(rows).sum((0, 2, 3)).double()
        keys = max(keys, int(inside.sum(-1).max()))
        count = len(rows)
    total = len(queries) * count
    return Spread(distance / total, entropy / total, keys, len(queries))


def positions(cells: Lattice, extent: tuple[int, int]) -> Tensor:
    """The centres of cells, as shares of the rows and columns of the grid: (H * W, 2)."""
    rows, columns = (cells.centres(axis) / extent[axis] for axis in (0, 1))
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)


def evenly(shares: Shares, most: int | None) -> Tensor:
    """The numbers of the queries with a place: all of them, or in even steps of rows and columns so many that they have
    about ``most`` weights."""
    height, width = _lattice(shares.queries).size
    row = shares.rows(torch.tensor([shares.others])).numel()
    step = 1 if most is None else max(1, math.ceil(math.sqrt(height * width * row / most)))
    rows, columns = (torch.arange(min(step, side) // 2, side, step) for side in (height, width))
    return shares.others + (rows[:, None] * width + columns).flatten()
