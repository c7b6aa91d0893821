"""Attention in windows of a grid: padded, shifted, split into windows, and back (Swin, section 3.2).

B images, H x W grid, C channels, h heads, w side of a window, n = w*w places in it, K windows in the batch.

Three forms with equal results: ``_reference``, as in the paper, which graphs hold; ``_gathered``, for training, with
one gather on the way in and one on the way out; and ``_in_bands``, for inference on a CPU. ``ops.window_heads`` has
another one for CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from mm_vitbackbones.ops import anysize, bias_sums, context, linear, onednn
from mm_vitbackbones.ops.kept import Kept
from mm_vitbackbones.ops.kernels import registration
from mm_vitbackbones.ops.once import typed

Attend = Callable[[Tensor, Tensor, "Sequence[int] | None"], Tensor]
"""Queries, keys and values of windows (K, n, 3C), and biases -> (K, n, C). Either there is a bias for each window or
one for all (K or 1, h, n, n); or there is one for each group of windows (G, h, n, n), with their sizes."""

BAND_BYTES = 4 * 2**20
"""The size of a band's queries, keys and values in inference on CPU, where a band is some of the windows."""
ALIGNED = 8
"""Elements: CUDA's kernels of attention want rows of a bias in multiples of it, and would fill them up at each call."""
CROWDED = 0.15
"""The padding, as a share of the tokens, above which the tokens are mapped before they are split into windows."""


def attention(
    grid: Tensor, qkv: nn.Module, attend: Attend, proj: nn.Module, bias: Tensor, side: int, shift: int
) -> Tensor:
    """``proj(attend(qkv(windows of the grid), bias))``, put back where the windows were: (B, H, W, C) -> (B, H, W, C).

    A grid that the windows do not fill is padded with zeros at the bottom and right, before ``qkv``. With a shift, the
    windows begin ``shift`` rows and columns later, and the windows at the end also hold the first rows and columns.

    Args:
        grid: the result of a norm.
        qkv: a linear map of tokens, C -> 3C.
        attend: the attention in a window.
        proj: another linear map of tokens, C -> C.
        bias: see ``bias_of``.
    """
    # For tensors without data no indices can be made and kept; without images there are no windows.
    if not context.is_eager() or grid.is_meta or type(grid) is not Tensor or grid.numel() == 0:
        return _reference(grid, qkv, attend, proj, bias, side, shift)
    windows = windows_of(*grid.shape[:3], side, shift, grid.device)
    if onednn.usable(grid) and context.is_plain(qkv) and context.is_plain(proj):
        return _in_bands(grid, qkv, attend, proj, bias, windows)
    return _gathered(grid, qkv, attend, proj, bias, windows)


def _reference(
    grid: Tensor, qkv: nn.Module, attend: Attend, proj: nn.Module, bias: Tensor, side: int, shift: int
) -> Tensor:
    batch, height, width, _ = grid.shape
    counts = anysize.ceil_div(height, side), anysize.ceil_div(width, side)
    # In code for any size, each index into a window would be several quotients, in all that is computed of windows. For
    # one size they are numbers, and on CUDA the passes before and after write into windows and read from them.
    compiles = context.is_compiling_to_run()
    one_size = compiles and context.device_type(grid) == "cuda" and anysize.are_known(height, width)
    in_graph = compiles and not one_size
    trains = bias_sums.is_for(grid, qkv, proj)
    of_windows = (cut_grid if in_graph else _cut)(grid, side, shift, *counts)
    # As a matrix: the compiler would put gaps between windows of 49 tokens, and copy them for the linear map.
    rows = of_windows.flatten(0, 1) if one_size else of_windows
    rows = bias_sums.to_queries_keys_values(rows, qkv) if trains else qkv(rows)
    of_windows = rows.unflatten(0, of_windows.shape[:2]) if one_size else rows
    if shift and compiles:
        bias = window_biases(bias, of_windows.dtype, batch, *counts)
    elif shift:
        bias = bias[_groups(*counts, grid.device)].repeat(batch, 1, 1, 1)
    out = attend(of_windows, bias, None)
    out = bias_sums.project(out, proj, qkv) if trains else proj(out)
    return (join_grid if in_graph else _joined)(out, side, shift, batch, *counts, height, width)


def _cut(grid: Tensor, side: int, shift: int, rows: int, columns: int) -> Tensor:
    """The windows of a grid (B, H, W, C), padded with zeros: (K, n, C)."""
    bottom, right = rows * side - grid.shape[1], columns * side - grid.shape[2]
    # A compiled graph that asked whether to pad, or below whether to cut off, would be valid for one answer only.
    if not context.is_eager() or bottom or right:
        grid = F.pad(grid, (0, 0, 0, right, 0, bottom))
    plane = _rolled(grid, shift)
    windows = anysize.in_order(plane.unflatten(1, (rows, side)).unflatten(3, (columns, side)).transpose(2, 3))
    return windows.flatten(0, 2).flatten(1, 2)


def _joined(
    windows: Tensor, side: int, shift: int, batch: int, rows: int, columns: int, height: int, width: int
) -> Tensor:
    """``_cut``, backwards: (K, n, C) -> (B, H, W, C)."""
    blocks = windows.view(batch, rows, columns, side, side, windows.shape[-1]).transpose(2, 3)
    plane = _rolled(anysize.in_order(blocks).flatten(1, 2).flatten(2, 3), -shift)
    if context.is_exporting():
        return anysize.first_cells(plane, height, width)
    if context.is_compiling():
        plane = F.pad(plane, (0, 0, 0, 1, 0, 1))
    return plane[:, :height, :width].contiguous()


def _groups(rows: int, columns: int, device: torch.device) -> Tensor:
    """The group of each window of a shifted grid, see ``Windows``: (rows * columns,)."""
    last_row = torch.arange(rows, device=device)[:, None] == rows - 1
    last_column = torch.arange(columns, device=device) == columns - 1
    return (last_row * 2 + last_column.int()).flatten()


def _rolled(plane: Tensor, count: int) -> Tensor:
    """The first ``count`` rows and columns moved to the end; below 0: the last ones to the beginning."""
    if not count:
        return plane
    if not context.is_exporting():
        return plane.roll((-count, -count), (1, 2))
    plane = torch.cat((plane[:, count:], plane[:, :count]), dim=1)
    return torch.cat((plane[:, :, count:], plane[:, :, :count]), dim=2)


def _gathered(grid: Tensor, qkv: nn.Module, attend: Attend, proj: nn.Module, bias: Tensor, windows: Windows) -> Tensor:
    """Equal to ``_reference``, with one gather on the way in and one on the way out."""
    tokens = grid.flatten(0, 2)
    if context.is_plain(qkv):
        # The linear map turns zero padding into its bias. Mapping the tokens alone is less work.
        of_windows = Gather.apply(linear.by(tokens, qkv), _fill(qkv), windows)
    else:
        of_windows = qkv(Gather.apply(tokens, tokens.new_zeros(tokens.shape[1]), windows))
    out = attend(of_windows.unflatten(0, (-1, windows.places)), bias, windows.sizes)
    return linear.by(Scatter.apply(out.flatten(0, 1), windows), proj).view_as(grid)


def _fill(qkv: nn.Module) -> Tensor:
    """What a linear map makes of padding: its bias, or zeros (3C,)."""
    weight, bias = cast(Tensor, qkv.weight), cast("Tensor | None", qkv.bias)
    return weight.new_zeros(len(weight)) if bias is None else bias


def _in_bands(grid: Tensor, qkv: nn.Module, attend: Attend, proj: nn.Module, bias: Tensor, windows: Windows) -> Tensor:
    """Equal to ``_reference``, some windows at a time, so that queries, keys and values never leave the cache."""
    places, tokens, dim = windows.places, grid.flatten(0, 2), grid.shape[-1]
    out = grid.new_empty(len(windows.tokens) // places, places, dim)
    size = max(1, BAND_BYTES // (places * 3 * dim * grid.element_size()))
    # In small grids the groups are too small for matrix products, and the padding is too much work.
    at_once = len(out) <= size or len(windows.padding) > CROWDED * len(tokens)
    if at_once:
        mapped = onednn.linear(tokens, qkv)
        context.release(grid)
        of_windows = windows.gather(mapped, _fill(qkv))
        del mapped

    first = 0
    for group, mask in zip(out.split(windows.sizes), bias.split(1), strict=True):
        for band in group.split(size) if len(group) else ():
            end = first + len(band) * places
            if at_once:
                part = of_windows[first:end]
            else:
                part = tokens.index_select(0, windows.tokens[first:end])
                part = onednn.linear(windows.pad_(part, part.new_zeros(dim), first), qkv)
            band.copy_(attend(part.unflatten(0, (-1, places)), mask, None))
            first = end

    # The norm's result has been read completely, and is as large as the result here.
    overwrite = not at_once and context.may_overwrite(grid) and grid.is_contiguous()
    result = grid if overwrite else torch.empty_like(grid)
    size *= places
    for band, here in zip(result.flatten(0, 2).split(size), windows.origin.split(size), strict=True):
        band.copy_(onednn.linear(out.flatten(0, 1).index_select(0, here), proj))
    return result


# ---- as operators of compiled graphs, of which the first two are each other's gradient


def _own_cut(grid: Tensor, *sizes: int) -> Tensor:
    return registration.own(_cut(grid, *sizes), grid)


def _own_joined(windows: Tensor, *sizes: int) -> Tensor:
    return registration.own(_joined(windows.contiguous(), *sizes), windows)


def _biases(bias: Tensor, dtype: torch.dtype, batch: int, rows: int, columns: int) -> Tensor:
    """The bias of each window from that of its group: (4, h, n, n) -> (K, h, n, n), in the memory of ``bias_of``."""
    places = bias.shape[-1]
    wide = F.pad(bias.to(dtype), (0, -places % ALIGNED))
    found = wide.new_empty(batch, rows, columns, *wide.shape[1:])
    for of_group, group in zip(_by_group(found), wide, strict=True):
        of_group.copy_(group)
    return found.flatten(0, 2)[..., :places]


def _biases_backward(grad: Tensor, dtype: torch.dtype, batch: int, rows: int, columns: int) -> Tensor:
    groups = _by_group(grad.unflatten(0, (batch, rows, columns)))
    return torch.stack([group.sum((0, 1, 2), dtype=dtype) for group in groups])


def _by_group(windows: Tensor) -> list[Tensor]:
    """What belongs to each group of windows (B, rows, columns, ...), some of which may be empty."""
    body, last = slice(None, -1), slice(-1, None)
    return [windows[:, i, j] for i, j in ((body, body), (body, last), (last, body), (last, last))]


_COUNTS = "SymInt batch, SymInt rows, SymInt columns"
cut_grid = registration.operator(
    "cut_grid(Tensor grid, int side, int shift, SymInt rows, SymInt columns) -> Tensor", _own_cut, _own_cut
)
join_grid = registration.operator(
    f"join_grid(Tensor windows, int side, int shift, {_COUNTS}, SymInt height, SymInt width) -> Tensor",
    _own_joined,
    _own_joined,
)
window_biases = registration.operator(
    f"window_biases(Tensor bias, ScalarType dtype, {_COUNTS}) -> Tensor", _biases, _biases
)
window_biases_backward = registration.operator(
    f"window_biases_backward(Tensor grad, ScalarType dtype, {_COUNTS}) -> Tensor", _biases_backward, _biases_backward
)


def _keep_grid(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grid, *ctx.windows = inputs
    ctx.batch, ctx.height, ctx.width, _ = grid.shape


def _keep_windows(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, side, shift, _, rows, columns, _, _ = inputs
    ctx.windows = side, shift, rows, columns


def _keep_counts(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    bias, _, *ctx.counts = inputs
    ctx.dtype = bias.dtype


registration.in_graphs(
    "cut_grid",
    lambda grid, side, shift, rows, columns: grid.new_empty(grid.shape[0] * rows * columns, side * side, grid.shape[3]),
    lambda ctx, grad: (
        join_grid(grad, *ctx.windows[:2], ctx.batch, *ctx.windows[2:], ctx.height, ctx.width),
        *(None,) * 4,
    ),
    _keep_grid,
)
registration.in_graphs(
    "join_grid",
    lambda windows, side, shift, batch, rows, columns, height, width: windows.new_empty(
        batch, height, width, windows.shape[2]
    ),
    lambda ctx, grad: (cut_grid(grad, *ctx.windows), *(None,) * 7),
    _keep_windows,
)
registration.in_graphs(
    "window_biases",
    lambda bias, dtype, batch, rows, columns: _wide(bias, (batch * rows * columns, *bias.shape[1:]), dtype),
    lambda ctx, grad: (window_biases_backward(grad, ctx.dtype, *ctx.counts), *(None,) * 4),
    _keep_counts,
)
registration.in_graphs(
    "window_biases_backward",
    lambda grad, dtype, batch, rows, columns: grad.new_empty(4, *grad.shape[1:], dtype=dtype),
)


# ---- the places of windows


class Windows:
    """The places of the tokens of a batch of grids (B, H, W) in their windows, and the way back.

    Padding, shift and partition are one gather together, and their inverse is another. The windows of all images are
    ordered in groups: those inside, those of the last column, those of the last row, and the last of all. In a
    shifted grid each group has one mask, the same for any grid size. Without a shift there is one group.
    """

    def __init__(self, batch: int, height: int, width: int, side: int, shift: int, device: torch.device) -> None:
        rows, columns = anysize.ceil_div(height, side), anysize.ceil_div(width, side)
        # Row y of the shifted plane is row y + shift of the padded one, which wraps around; the same for columns.
        y = (torch.arange(rows * side, device=device) + shift) % (rows * side)
        x = (torch.arange(columns * side, device=device) + shift) % (columns * side)
        image = torch.arange(batch, device=device)[:, None, None]
        # Places in the padding point to a token of their own image; `pad_` overwrites them.
        token = (image * height + y.clamp(max=height - 1)[:, None]) * width + x.clamp(max=width - 1)
        padding = ((y >= height)[:, None] | (x >= width)).expand_as(token)
        body, last, every = slice(None, -1), slice(-1, None), slice(None)
        groups = [(body, body), (body, last), (last, body), (last, last)] if shift else [(every, every)]

        self.side, self.shift = side, shift

        def ordered(plane: Tensor) -> list[Tensor]:
            windows = plane.unflatten(1, (rows, side)).unflatten(3, (columns, side)).transpose(2, 3)
            return [windows[:, i, j].flatten(3).flatten(0, 2) for i, j in groups]

        self.places = side * side
        """n: the places of a window."""
        self.sizes = [len(group) for group in ordered(token)]
        """The number of windows in each group."""
        first, *others = self.sizes
        self.two_sizes = [size for size in (first, sum(others)) if size]
        """Those of the first group and of all others, which are small, as one; without a group that is empty."""
        self.has_first = first > 0
        kinds = [torch.full((size,), i + 1, device=device) for i, size in enumerate(others)]
        self.of_others = torch.cat(kinds) if sum(others) else None
        """The group of each window that is not of the first group (K')."""
        self.tokens = torch.cat(ordered(token)).flatten()
        """The token of each place (K * n)."""
        is_padding = torch.cat(ordered(padding)).flatten()
        self.padding = is_padding.nonzero().flatten()
        """The places that have no token."""
        self.origin = torch.empty(batch * height * width, dtype=torch.long, device=device)
        """The place of each token (B * H * W)."""
        self.origin[self.tokens[~is_padding]] = (~is_padding).nonzero().flatten()

    def gather(self, tokens: Tensor, fill: Tensor) -> Tensor:
        """Tokens (B * H * W, C) -> their windows (K * n, C), with ``fill`` (C,) in the padding."""
        return self.pad_(tokens.index_select(0, self.tokens), fill)

    def scatter(self, windows: Tensor) -> Tensor:
        """Windows (K * n, C) -> their tokens (B * H * W, C)."""
        return windows.index_select(0, self.origin)

    def pad_(self, windows: Tensor, fill: Tensor, first: int = 0) -> Tensor:
        """Writes ``fill`` into the padding of windows, or of a part of them that begins at the place ``first``."""
        padding, count = self.padding, windows.shape[0]
        if padding.shape[0] and count < self.tokens.shape[0]:
            padding = padding[(padding >= first) & (padding < first + count)] - first
        if padding.shape[0]:
            windows[padding] = typed(fill, windows.dtype)
        return windows


class Gather(torch.autograd.Function):
    """``Windows.gather``, whose gradient is a gather too; PyTorch's own would add up row by row."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, fill: Tensor, windows: Windows) -> Tensor:
        ctx.windows, ctx.dtype = windows, fill.dtype
        return windows.gather(tokens, fill)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        fill = grad[ctx.windows.padding].sum(0).to(ctx.dtype) if ctx.needs_input_grad[1] else None
        return Scatter.apply(grad, ctx.windows), fill, None


class Scatter(torch.autograd.Function):
    """``Windows.scatter``; its gradient has zeros in the padding."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, windows: Windows) -> Tensor:
        ctx.windows = windows
        return windows.scatter(tokens)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return Gather.apply(grad, grad.new_zeros(grad.shape[1]), ctx.windows), None


windows_of = Kept(Windows)


# ---- biases


def relative_positions(side: int, device: torch.device) -> Tensor:
    """The row of the bias table for each pair of places in a window: (n * n,)."""
    place = torch.arange(side, device=device)
    offset = place[:, None] - place + side - 1
    return (offset[:, None, :, None] * (2 * side - 1) + offset[None, :, None, :]).flatten()


def shift_masks(side: int, shift: int, device: torch.device) -> Tensor:
    """-100 between places that only the shift brought together, by group of windows: (4, 1, n, n)."""
    wrapped = torch.arange(side, device=device) >= side - shift
    never = torch.zeros_like(wrapped)
    regions = [(y[:, None] * 2 + x.int()).flatten() for y in (never, wrapped) for x in (never, wrapped)]
    return torch.stack([(region[:, None] != region) * -100.0 for region in regions])[:, None]


def bias_of(table: Tensor, side: int, shift: int) -> Tensor:
    """The bias of relative positions, and of the mask, by group of windows: (1 or 4, h, n, n).

    Without gradients on a CPU it is kept until the values of the table change. On CUDA comparing them would wait for
    the card, which takes longer than making it again and cannot be part of a CUDA graph.

    Args:
        table: ((2w - 1)^2, h).
    """
    if context.is_compiling_to_run():
        return window_bias(table, side, shift)
    on_cpu = context.device_type(table) == "cpu" and type(table) in (Tensor, nn.Parameter)
    if torch.is_grad_enabled() or not context.is_eager() or not on_cpu:
        return _bias(table, side, shift)
    kept = _kept_biases.get(table)
    # The values are compared, as some changes leave no trace: those through `.data` or a shared buffer.
    if kept is None or kept[0] != (side, shift) or not _same(kept[1], table):
        with torch.inference_mode(False), torch.no_grad():
            kept = _kept_biases[table] = (side, shift), table.clone(), _bias(table, side, shift)
    return kept[2]


_kept_biases: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _same(kept: Tensor, table: Tensor) -> bool:
    return kept.dtype == table.dtype and kept.device == table.device and torch.equal(kept, table)


def _bias(table: Tensor, side: int, shift: int, keep: bool = True) -> Tensor:
    places = side * side
    positions, masks = constants(side, shift, table.device, keep)
    # `index_select`, whose gradient is one launch on CUDA; that of indexing sorts first.
    bias = table.index_select(0, positions).view(1, places, places, -1).permute(0, 3, 1, 2)
    if masks is not None:
        bias = bias + masks.to(bias.dtype)
    if context.is_exporting():
        return bias
    return F.pad(bias.contiguous(), (0, -places % ALIGNED))[..., :places]


def _bias_in_graphs(table: Tensor, side: int, shift: int) -> Tensor:
    return _wide(table, (4 if shift else 1, table.shape[1], side * side, side * side), table.dtype)


def _wide(like: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The memory of ``_bias``, for as many groups or windows."""
    *others, places = shape
    return like.new_empty(*others, places + -places % ALIGNED, dtype=dtype)[..., :places]


def table_gradient(grad: Tensor, side: int, keep: bool = True) -> Tensor:
    """The gradient of a table from that of the bias of one window: (h, n, n) -> ((2w - 1)^2, h)."""
    positions, _ = constants(side, 0, grad.device, keep)
    return grad.new_zeros((2 * side - 1) ** 2, grad.shape[0]).index_add_(0, positions, grad.flatten(1).t())


# Operators of compiled graphs, which would otherwise hold the code that makes positions and masks in each block.


def _own_bias(table: Tensor, side: int, shift: int) -> Tensor:
    return _bias(table, side, shift, _may_keep(table))


def _bias_backward(grad: Tensor, side: int) -> Tensor:
    return table_gradient(grad.sum(0), side, _may_keep(grad))


def _may_keep(x: Tensor) -> bool:
    """Whether an operator of a graph may keep a tensor: not on CUDA, where what it makes can be in the memory of a CUDA
    graph, which other graphs write into."""
    return context.device_type(x) != "cuda"


window_bias = registration.operator("window_bias(Tensor table, int side, int shift) -> Tensor", _own_bias, _own_bias)
window_bias_backward = registration.operator(
    "window_bias_backward(Tensor grad, int side) -> Tensor", _bias_backward, _bias_backward
)


def _keep_side(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.side = inputs[1]


registration.in_graphs(
    "window_bias",
    _bias_in_graphs,
    lambda ctx, grad: (window_bias_backward(grad, ctx.side), None, None),
    _keep_side,
)
registration.in_graphs("window_bias_backward", lambda grad, side: grad.new_empty((2 * side - 1) ** 2, grad.shape[1]))


def constants(side: int, shift: int, device: torch.device, keep: bool = True) -> tuple[Tensor, Tensor | None]:
    """``relative_positions`` and, with a shift, ``shift_masks``; those that are kept are shared by all blocks."""
    if not keep or not context.is_eager() or device.type == "meta":
        return relative_positions(side, device), shift_masks(side, shift, device) if shift else None
    return kept_constants(side, shift, False, device)


def _constants(side: int, shift: int, wide: bool, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """``constants`` of eager mode.

    Args:
        wide: rows are filled up to a multiple of ``ALIGNED``.
    """
    positions, masks = relative_positions(side, device), shift_masks(side, shift, device) if shift else None
    if wide:
        more = (0, -side * side % ALIGNED)
        positions = F.pad(positions.view(side * side, -1), more).flatten()
        masks = None if masks is None else F.pad(masks, more)
    return positions, masks


kept_constants = Kept(_constants, count=16)
