"""Attention over a reduced grid (PVT, PVTv2, MiT), over all tokens (PiT, ViT), and with positions (DINOv3, ViTDet)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mm_vitbackbones.layers.conv import ChannelsLastConv2d
from mm_vitbackbones.layers.norm import LayerNorm
from mm_vitbackbones.ops import attention, context, head_maps, linear, looking, norm, reduced_heads, rotary, windows
from mm_vitbackbones.ops.chained import Forked, Pending, finished


@context.plain
class ConvReduction(nn.Module):
    """Keys and values on a coarser grid: (B, H, W, C) -> (B, H//r, W//r, C). A remainder of rows or columns is
    left out, as in the official code."""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.conv = ChannelsLastConv2d(dim, dim, kernel_size=ratio, stride=ratio)
        self.norm = LayerNorm(dim, eps=1e-5)  # PyTorch's default epsilon, as official

    def forward(self, grid: Tensor) -> Tensor:
        return norm.for_linear(self.conv(grid), self.norm, again=False)

    @property
    def parts(self) -> reduced_heads.Reduction:
        """The convolution and the norm."""
        inner: dict[str, Any] = self._modules  # `self.conv` takes PyTorch as long as a launch
        return reduced_heads.Reduction(inner["conv"], inner["norm"])

    def cells(self, height: int, width: int) -> looking.Lattice:
        """Where the cells of the result are in a grid of these sides."""
        ratio = float(self.ratio)
        return looking.Lattice((height // self.ratio, width // self.ratio), (ratio, ratio), (ratio / 2, ratio / 2))


@context.plain
class SpatialReductionAttention(nn.Module):
    """Attention of every token of a grid (B, H, W, C) over a reduced grid of keys and values (PVT, equations 1 to 4).

    ``reduction`` maps a grid to the grid of the keys; None leaves it as it is.
    """

    def __init__(self, dim: int, num_heads: int, reduction: nn.Module | None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.reduction = nn.Identity() if reduction is None else reduction

    def forward(self, grid: Tensor) -> Tensor:
        return finished(self.begun(grid))

    def begun(self, grid: Tensor | Forked) -> Tensor | Pending:
        """``forward``, whose last map may be left to the caller."""
        inner: dict[str, Any] = self._modules
        reduction, maps = inner["reduction"], (inner["kv"], inner["proj"])
        parts = reduction.parts if type(reduction) is ConvReduction and context.is_plain(reduction) else None
        return attention.attend_to_reduced(grid, inner["q"], reduction, parts, *maps, self.num_heads)

    def looks_at(self, grid: Tensor) -> looking.Shares:
        """The attention weights of chosen queries."""
        of_reduced, extent = self.reduction(grid), (grid.shape[1], grid.shape[2])
        key, _ = linear.by(of_reduced, self.kv).flatten(1, 2).chunk(2, dim=-1)
        same = isinstance(self.reduction, nn.Identity)
        cells = looking.Lattice(extent) if same else self.reduction.cells(*extent)  # type: ignore[operator]
        query = linear.linear(grid.flatten(1, 2), self.q)
        return looking.of_grids(query, key, self.num_heads, extent, cells)


@context.plain
class SelfAttention(nn.Module):
    """Attention of every token over all of them: (B, N, C) -> (B, N, C).

    Args:
        again: whether training on a CPU computes queries, keys and values again, which are a third of what it keeps.
    """

    def __init__(self, dim: int, num_heads: int, again: bool = False) -> None:
        super().__init__()
        self.num_heads, self.again = num_heads, again
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return finished(self.begun(tokens))

    def begun(self, tokens: Tensor | Forked) -> Tensor | Pending:
        """``forward``, whose last map may be left to the caller."""
        inner: dict[str, Any] = self._modules  # `self.qkv` takes PyTorch as long as a launch
        return attention.attend_to_each_other(tokens, inner["qkv"], inner["proj"], self.num_heads, self.again)

    def looks_at(self, tokens: Tensor) -> looking.Shares:
        """The attention weights of chosen queries."""
        query, key, _ = linear.linear(tokens, self.qkv).chunk(3, dim=-1)
        return looking.of_tokens(query, key, self.num_heads)


@context.plain
class RotaryAttention(nn.Module):
    """Attention of every token over all of them, whose queries and keys are turned by their position:
    (B, N, C) -> (B, N, C) (Su et al. 2021, RoFormer).

    The keys have no bias: DINOv3 masks it, and here it would not cancel in the softmax.
    """

    def __init__(self, dim: int, num_heads: int, bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim, bias)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim, bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, rotation: rotary.Rotation) -> Tensor:
        return finished(self.begun(tokens, rotation))

    def begun(self, tokens: Tensor | Forked, rotation: rotary.Rotation) -> Tensor | Pending:
        """``forward``, whose last map may be left to the caller."""
        inner: dict[str, Any] = self._modules
        maps = inner["q"], inner["k"], inner["v"], inner["proj"]
        return attention.attend_turned(tokens, *maps, rotation, self.num_heads)

    def looks_at(self, tokens: Tensor, rotation: rotary.Rotation) -> looking.Shares:
        """The attention weights of chosen queries."""
        query, key = (rotary.rotate(linear.linear(tokens, x), rotation, self.num_heads) for x in (self.q, self.k))
        return looking.of_tokens(query, key, self.num_heads)


@context.plain
class RelativeAttention(nn.Module):
    """Attention of every token of a grid over all of them, or over those of its window, with a term for the distance in
    rows and one for that in columns: (B, H, W, C) -> (B, H, W, C) (Li et al. 2022, MViTv2, equation 4; ViTDet):

        softmax(Q K' / sqrt(d) + R) V,  R = q . rows[y_q - y_k] + q . columns[x_q - x_k]

    Windows of ``window_size`` tokens begin at the upper left. A grid that they do not fill is padded with zeros before
    the linear map, and padded tokens take part, as in the official code.

    Args:
        window_size: side of a window; None: one window holds the whole grid.
        table_size: side of the grid that the tables are for, which are resized to other sides; None: no terms.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int | None, table_size: int | None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rows, self.columns = (
            None if table_size is None else nn.Parameter(torch.zeros(2 * table_size - 1, dim // num_heads))
            for _ in range(2)
        )

    def forward(self, grid: Tensor) -> Tensor:
        if self.window_size is None:
            out = self.attend(linear.linear(grid.flatten(1, 2), self.qkv), self.distances(*grid.shape[1:3]))
            return linear.linear(out, self.proj).view_as(grid)
        side = self.window_size
        tables = self.distances(side, side)
        # `windows.attention` passes on what `attend` takes besides windows, with an axis of length one in front.
        bias = grid.new_empty(1) if tables is None else torch.stack(tables).unsqueeze(0)

        def attend(qkv: Tensor, bias: Tensor, _: Any = None) -> Tensor:
            return self.attend(qkv, None if tables is None else (bias[0, 0], bias[0, 1]))

        return windows.attention(grid, self.qkv, attend, self.proj, bias, side, shift=0)

    def looks_at(self, grid: Tensor) -> looking.Shares:
        """The attention weights of chosen queries."""
        extent, side = (grid.shape[1], grid.shape[2]), self.window_size
        if side is not None:
            bias = looking.bias_of_distances(self.distances(side, side))
            return looking.in_windows(grid, self.qkv, self.num_heads, side, 0, bias)
        query, key, _ = linear.linear(grid.flatten(1, 2), self.qkv).chunk(3, dim=-1)
        tables = self.distances(*extent)
        if tables is None:
            return looking.of_grids(query, key, self.num_heads, extent, looking.Lattice(extent))
        query, key = (head_maps.by_head(x, self.num_heads) for x in (query, key))
        cells = looking.Lattice(extent)
        return looking.by_distance(query, key, tables, cells, cells, extent)

    def attend(self, qkv: Tensor, tables: tuple[Tensor, Tensor] | None) -> Tensor:
        """(K, H * W, 3C) -> (K, H * W, C)."""
        if tables is None:
            query, key, value = qkv.chunk(3, dim=-1)
            return attention.attend(query, key, value, self.num_heads)
        rows, columns = tables
        return attention.attend_by_distance(qkv, rows, columns, self.num_heads)

    def distances(self, height: int, width: int) -> tuple[Tensor, Tensor] | None:
        """For each pair of rows, and of columns, the vector of their distance: (H, H, d) and (W, W, d)."""
        if self.rows is None or self.columns is None:
            return None
        return attention.by_distance(self.rows, height), attention.by_distance(self.columns, width)
