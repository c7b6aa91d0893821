"""Grids of other sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mm_vitbackbones.ops import anysize, context, conv, residual
from mm_vitbackbones.ops.kept import Kept
from mm_vitbackbones.ops.kernels import registration
from mm_vitbackbones.ops.once import direct


def resize_grid(grid: Tensor, height: int, width: int, mode: str = "bilinear") -> Tensor:
    """(B, H, W, C) -> (B, height, width, C), half-pixel centres; the same tensor if the size is the same."""
    if anysize.same_size(grid.shape[1:3], (height, width)):
        return grid
    if mode == "bilinear" and _by_one_operator(grid):
        return resized(grid, height, width, None)
    return conv.grid_of(F.interpolate(conv.maps_of(grid), size=(height, width), mode=mode, align_corners=False))


def resize_cells(grid: Tensor, cell: float, stride: int, size: tuple[int, int]) -> Tensor:
    """A grid (B, H, W, C) of cells of ``cell`` pixels -> (B, *size, C) of cells of ``stride`` pixels, bilinear. Both
    begin at pixel 0; what ``size`` does not need is left out, and what it lacks repeats the last row or column."""
    height, width = size
    if cell != stride and (context.is_exporting() or context.is_to_repeat(grid)):
        rows, columns = (
            shares_of_places(before, after, grid, stride / cell)
            for before, after in zip(grid.shape[1:3], size, strict=True)
        )
        return by_lines(grid, rows, columns)
    if cell != stride:
        resize = resized if _by_one_operator(grid) else _resized
        return resize(grid, height, width, cell / stride)
    return grid if anysize.same_size(grid.shape[1:3], (height, width)) else grid[:, :height, :width]


def _resized(grid: Tensor, height: int, width: int, factor: float | None) -> Tensor:
    """Bilinear: (B, H, W, C) -> (B, height, width, C).

    Args:
        factor: so many new cells cover as much as one old cell; what they lack repeats the last row or column. None:
            all new cells cover as much as all old ones.
    """
    maps = grid.permute(0, 3, 1, 2)
    with context.autocast_to(grid.device, None):  # which would repeat rows in fp32, on a CPU
        if (padding := _padding(grid.shape[1:3], (height, width), factor)) != (0, 0, 0, 0):
            maps = F.pad(maps, padding, mode="replicate")
        maps = torch.ops.aten.upsample_bilinear2d.default(maps, (height, width), False, factor, factor)
    grid = maps.permute(0, 2, 3, 1)
    on_cpu = context.device_type(grid) == "cpu" and context.is_eager()
    return _with_gradient_in_order(grid) if on_cpu and grid.requires_grad else grid


def _padding(before: Sequence[int], after: Sequence[int], factor: float | None) -> tuple[int, int, int, int]:
    """Left, right, top and bottom: further columns and rows, so that there are cells at all places of the new ones.
    One is added where cells stay as many: PyTorch leaves such a line as it is, whatever the factor."""
    if factor is None:
        return 0, 0, 0, 0
    new, old = factor.as_integer_ratio()
    bottom, right = (
        length - cells + (length == wanted)
        for cells, wanted in zip(before, after, strict=True)
        for length in [max(cells, anysize.ceil_div(wanted * old, new))]
    )
    return 0, right, 0, bottom


class _WithGradientInOrder(torch.autograd.Function):
    """A grid, whose gradient is in the order of its memory: that of maps may come, of which PyTorch's gradient of a
    resize takes three times as long on a CPU."""

    @staticmethod
    def forward(ctx: Any, grid: Tensor) -> Tensor:
        return grid.view_as(grid)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.contiguous()


_with_gradient_in_order = direct(_WithGradientInOrder)


# ---- as an operator of compiled graphs, with its gradient


def _by_one_operator(grid: Tensor) -> bool:
    """Whether a graph holds a resize as one operator. PyTorch's compiler makes reads at computed places of it, whose
    gradient adds up cell by cell; and where new cells are more than are wanted, it makes graphs by whether they are.
    For one size on CUDA, reads are fused with what comes before and after."""
    if not context.is_compiling_to_run() or context.is_to_repeat(grid):
        return False
    return context.device_type(grid) != "cuda" or not anysize.are_known(*grid.shape[1:3])


def _own_resized(grid: Tensor, height: int, width: int, factor: float | None) -> Tensor:
    return registration.own(_resized(grid, height, width, factor), grid)


def _resized_backward(grad: Tensor, height: int, width: int, factor: float | None) -> Tensor:
    """The gradient of a grid of ``height`` x ``width`` cells."""
    batch, *size, channels = grad.shape
    padding = _padding((height, width), size, factor)
    sizes = [batch, channels, height + padding[3], width + padding[1]]
    maps = grad.contiguous().permute(0, 3, 1, 2)
    with context.autocast_to(grad.device, None):
        maps = torch.ops.aten.upsample_bilinear2d_backward.default(maps, size, sizes, False, factor, factor)
        if padding != (0, 0, 0, 0):
            maps = torch.ops.aten.replication_pad2d_backward.default(maps, maps[:, :, :height, :width], padding)
    return registration.own(maps.permute(0, 2, 3, 1), grad)


def _keep_size(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grid, _, _, ctx.factor = inputs
    ctx.size = grid.shape[1:3]


resized = registration.operator(
    "resized(Tensor grid, SymInt height, SymInt width, float? factor) -> Tensor", _own_resized, _own_resized
)
resized_backward = registration.operator(
    "resized_backward(Tensor grad, SymInt height, SymInt width, float? factor) -> Tensor",
    _resized_backward,
    _resized_backward,
)
registration.in_graphs(
    "resized",
    lambda grid, height, width, factor: grid.new_empty(grid.shape[0], height, width, grid.shape[3]),
    lambda ctx, grad: (resized_backward(grad, *ctx.size, ctx.factor), None, None, None),
    _keep_size,
)
registration.in_graphs(
    "resized_backward",
    lambda grad, height, width, factor: grad.new_empty(grad.shape[0], height, width, grad.shape[3]),
)


def by_lines(grid: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """A linear map of rows (height, H), then one of columns (width, W): (B, H, W, C) -> (B, height, width, C)."""
    if not context.is_exporting():
        return torch.einsum("jw,biwc->bijc", columns, torch.einsum("ih,bhwc->biwc", rows, grid))
    # The same, of which PyTorch asks less about sizes.
    resized = F.linear(conv.maps_of(grid), columns)  # (B, C, H, width)
    resized = F.linear(anysize.in_order(resized.mT), rows)  # (B, C, width, height)
    return anysize.in_order(resized.permute(0, 3, 2, 1))


def shares_of_places(before: int, after: int, like: Tensor, step: float | None = None) -> Tensor:
    """(after, before): the matrix that resizes a line linearly. Cell i is the value at place (i + 0.5) * step - 0.5 of
    the cells before; places beyond the first and the last cell have the values of these.

    Args:
        step: between two places, in cells; None: before / after.
    """
    wide = torch.promote_types(like.dtype, torch.float32)
    place, cell = (torch.arange(end, device=like.device, dtype=wide) for end in (after, before))
    place = (place + 0.5) * before / after if step is None else (place + 0.5) * step
    place = torch.minimum((place - 0.5).clamp(min=0.0), cell[-1:])
    return (1 - (place[:, None] - cell).abs()).clamp(min=0.0).to(like.dtype)


def largest_of(grid: Tensor, side: int, ceil: bool) -> Tensor:
    """The largest of ``side`` x ``side`` cells: (B, H, W, C) -> (B, H', W', C). H' is ceil(H / side); without ``ceil``,
    a remainder of rows and columns is left out."""
    maps = conv.maps_of(grid)
    if ceil and context.is_exporting():  # PyTorch would ask whether there is a remainder
        bottom, right = (anysize.lack(length, side) for length in grid.shape[1:3])
        maps, ceil = F.pad(maps, (0, right, 0, bottom), value=-math.inf), False
    return conv.grid_of(F.max_pool2d(maps, side, ceil_mode=ceil))


def resized_sum(grids: Sequence[Tensor], height: int, width: int) -> Tensor:
    """The sum of grids (B, *, *, C), each resized to (B, height, width, C)."""
    # A grid of this size goes first: a resized one is a new tensor, into which a sum may be written.
    total, *others = sorted(grids, key=lambda grid: not anysize.same_size(grid.shape[1:3], (height, width)))
    for grid in others:
        resized = resize_grid(grid, height, width)
        total = total + resized if resized is grid else residual.add_fresh(total, resized)
    return total


def pooled_to(grid: Tensor, side: int) -> Tensor:
    """Averages over areas that cover a grid: (B, H, W, C) -> (B, side, side, C), as ``F.adaptive_avg_pool2d``."""
    if context.is_eager() and not context.is_to_repeat(grid):
        return F.adaptive_avg_pool2d(grid.permute(0, 3, 1, 2), side).permute(0, 2, 3, 1)
    # PyTorch's compiler makes a graph of that for each size of the grid. Products serve them all.
    shares = area_shares if context.is_compiling_to_run() else _shares_in_areas
    rows, columns = (shares(grid.detach(), size, side) for size in grid.shape[1:3])
    return by_lines(grid, rows, columns)


def _shares_in_areas(like: Tensor, size: int, count: int) -> Tensor:
    """(count, size): area i is the mean of the cells from floor(i * size / count) on, before ceil((i + 1) * size /
    count)."""
    area, cell = (torch.arange(end, device=like.device) for end in (count, size))
    first, last = area * size // count, ((area + 1) * size + count - 1) // count
    inside = (cell >= first[:, None]) & (cell < last[:, None])
    return inside.to(like.dtype) / (last - first)[:, None].to(like.dtype)


area_shares = registration.operator(
    "area_shares(Tensor like, SymInt size, int count) -> Tensor", _shares_in_areas, _shares_in_areas
)
registration.in_graphs("area_shares", lambda like, size, count: like.new_empty(count, size))


@dataclass(frozen=True)
class TableResize:
    """How a table of positions becomes one of another size: each family's own way.

    Args:
        mode: bilinear or bicubic, half-pixel centres.
        antialias: whether a smaller table is smoothed first.
        offset: cells that are added to a size for the step between samples, which is old size / (new size + offset).
    """

    mode: str = "bilinear"
    antialias: bool = False
    offset: float = 0.0

    def __call__(self, maps: Tensor, height: int, width: int) -> Tensor:
        """(1, C, H, W) -> (1, C, height, width)."""
        if not self.offset:
            size = height, width
            return F.interpolate(maps, size=size, mode=self.mode, align_corners=False, antialias=self.antialias)
        # The scales as they are, and not those of the sizes: the samples lie a little closer to each other.
        scales = [(new + self.offset) / old for new, old in zip((height, width), maps.shape[2:], strict=True)]
        return F.interpolate(maps, scale_factor=scales, mode=self.mode, align_corners=False)


def resized_table(table: Tensor, height: int, width: int, resize: TableResize) -> Tensor:
    """A table of positions (1, H, W, C) -> (1, height, width, C); the same tensor if the size is the same.

    A bicubic resize is a linear map of rows, then of columns. On CUDA these are two small products: the gradient is
    deterministic, which PyTorch's own is not, and both are in the order of channels-last memory.
    """
    if anysize.same_size(table.shape[1:3], (height, width)):
        return table
    with context.autocast_to(table.device, None):
        wide = table.to(torch.promote_types(table.dtype, torch.float32))
        # A resize by scales gives other sizes in a graph, where PyTorch rounds them by itself.
        if (matrix := _matrix_of_line(table, height, width, resize)) is not None:
            sides = zip(wide.shape[1:3], (height, width), strict=True)
            rows, columns = (matrix(before, after, resize, wide.dtype, wide.device) for before, after in sides)
            resized = columns @ (rows @ wide[0].flatten(1)).unflatten(1, wide.shape[2:])
            return resized.unsqueeze(0).to(table.dtype)
        # No other runtime has an offset, and few smooth as PyTorch does.
        if context.is_exporting() and resize.mode == "bicubic" and (resize.antialias or resize.offset):
            lengths = (
                wide.new_tensor([*wide.shape[1:3]]),
                torch.stack([wide.new_full((), side) for side in (height, width)]),
            )
            # A table of the same size stays as it is: there is no offset.
            offset = (lengths[0] - lengths[1]).abs().amax(0).clamp(max=1.0) * resize.offset
            rows, columns = (
                _cubic_shares(before, after, offset, resize.antialias, wide.dtype, wide.device)
                for before, after in zip(wide.shape[1:3], (height, width), strict=True)
            )
            return by_lines(wide, rows, columns).to(table.dtype)
        return resize(conv.maps_of(wide), height, width).permute(0, 2, 3, 1).to(table.dtype)


def _cubic_shares(
    before: int, after: int, offset: Any, antialias: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The matrix (after, before) of a bicubic resize of a line, which in an export serves every size ``after``.

    Cubic convolution (Keys 1981). PyTorch's sharpness is -0.75, and with antialiasing -0.5; there the kernel is as wide
    as a step, and places outside of the line have no weight, where otherwise they are its first and last one.
    """
    sharpness, margin = (-0.5, 0) if antialias else (-0.75, 3)
    centre = (torch.arange(after, device=device).to(dtype) + 0.5) * before / (after + offset) - 0.5
    distance = (centre[:, None] - torch.arange(-margin, before + margin, device=device)).abs()
    if antialias:
        distance = distance / (torch.ones_like(distance[:, :1]) * before / (after + offset)).clamp(min=1.0)
    near = ((sharpness + 2) * distance - (sharpness + 3)) * distance * distance + 1
    far = sharpness * (((distance - 5) * distance + 8) * distance - 4)
    share = torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))
    share = share / share.sum(1, keepdim=True)
    if before == 1 or not margin:
        return share.sum(1, keepdim=True) if margin else share
    first, last = (part.sum(1, keepdim=True) for part in (share[:, : margin + 1], share[:, -margin - 1 :]))
    return torch.cat((first, share[:, margin + 1 : -margin - 1], last), dim=1)


def _matrix_of_line(table: Tensor, height: int, width: int, resize: TableResize) -> Callable[..., Tensor] | None:
    """What gives the matrix of a line where a table is resized by products; None elsewhere."""
    on_cuda = context.device_type(table) == "cuda" and not table.is_meta
    if context.is_eager():
        return _line if on_cuda and resize.mode == "bicubic" else None
    if not context.is_compiling_to_run():
        return None
    trains = context.trains([table])
    if on_cuda and trains and not resize.antialias:
        # The gradient of PyTorch's resize would be up to 16 kernels, which add to random places.
        return _line_in_graphs
    # PyTorch's compiler makes a graph for each size of a resize by scales, and cannot make one for the gradient of a
    # smoothed resize to a size that it does not know.
    if (resize.offset or (resize.antialias and trains)) and not anysize.are_known(height, width):
        return _line_in_graphs
    return None


def _exact_shares(before: int, after: int, resize: TableResize, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix (after, before) of a resize of a line, computed in fp64."""
    cpu = torch.device("cpu")
    if resize.mode == "bilinear":
        like, step = torch.empty(0, dtype=torch.float64, device=cpu), before / (after + resize.offset)
        return shares_of_places(before, after, like, step).to(device, dtype)
    return _cubic_shares(before, after, resize.offset, resize.antialias, torch.float64, cpu).to(device, dtype)


_line = Kept(_exact_shares)


def _line_in_graphs(before: int, after: int, resize: TableResize, dtype: torch.dtype, device: torch.device) -> Tensor:
    like = torch.empty(0, dtype=dtype, device=device)
    return line_shares(like, before, after, resize.mode, resize.antialias, resize.offset)


def _host_shares(before: int, after: int, resize: TableResize, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``_exact_shares`` in the memory of the host, from which a device copies without waiting."""
    shares = _exact_shares(before, after, resize, dtype, torch.device("cpu"))
    return shares.pin_memory() if device.type == "cuda" else shares


_host_line = Kept(_host_shares)


def _line_shares(like: Tensor, before: int, after: int, mode: str, antialias: bool, offset: float) -> Tensor:
    # What a graph makes on a device is not kept: its memory is the graph's, which may write into it.
    shares = _host_line(before, after, TableResize(mode, antialias, offset), like.dtype, like.device)
    return shares.to(like.device, non_blocking=True, copy=True)


line_shares = registration.operator(
    "line_shares(Tensor like, SymInt before, SymInt after, str mode, bool antialias, float offset) -> Tensor",
    _line_shares,
    _line_shares,
)
registration.in_graphs("line_shares", lambda like, before, after, *_: like.new_empty(after, before))
