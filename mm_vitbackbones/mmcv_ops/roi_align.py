"""RoIAlign: the mean, or the maximum, of bilinear samples in each cell of a grid over a region of a map.

A region (RoI) is (image, x1, y1, x2, y2) in pixels of the image; times ``spatial_scale`` it is in cells of the map.
With ``aligned``, half a cell is taken off, since the centre of the first cell is at 0.5; without it, a region is at
least one cell wide and high. The region is divided into ``aligned_height`` x ``aligned_width`` bins, and a bin has
``sampling_ratio`` x ``sampling_ratio`` samples in its regular grid; with a ratio of 0, as many as it has cells, rounded
up. A sample is the bilinear interpolation of four cells. From the border on, the last cell goes on for one cell more;
further outside a sample is zero.

How it is computed: the weight of a cell in a bin's mean is the product of a weight for its row and one for its column.
So a bin is a weighted sum of cells, that is, of rows of the map as a table (B * H * W, C), which is what
``embedding_bag`` does in one pass. The gradient is the same sum the other way round: for each cell, over bins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mm_vitbackbones.errors import UserError
from mm_vitbackbones.mmcv_ops.compiled import torchvision_operators

BLOCK = 2**22
"""Weights that are held at once, at most (of one region there may be more)."""


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign of a map, with any strides.

    Half precision is computed in single precision. A bin without samples (in a region without width or height, with a
    ratio of 0) is zero.

    Args:
        input: (B, C, H, W).
        rois: (N, 5): image, x1, y1, x2, y2.
        output: output, (N, C, aligned_height, aligned_width).
        argmax_y, argmax_x: outputs, with ``pool_mode`` 0 (maximum): where the sample with the highest value is, in
            cells of the map; as large as ``output``. -1 in a bin without samples. With ``pool_mode`` 1 (mean) not used.

    Raises:
        UserError: on a CPU, with ``aligned``: a region with a negative width or height. (On a GPU, looking for one
            would wait for the device; it is empty there.)

    Source: He et al., "Mask R-CNN", arXiv 1703.06870, section 3; mmcv's documentation of ``mmcv.ops.RoIAlign``.
    """
    if not output.numel():
        return
    if aligned and rois.device.type == "cpu":
        _check(rois)
    shape = (aligned_height, aligned_width)
    compiled = _compiled(input, pool_mode)
    if compiled is not None:
        rois = rois.to(input.dtype)
        output.copy_(compiled.roi_align(input, rois, spatial_scale, *shape, sampling_ratio, aligned))
        return
    table = _table(input)
    grid = _Grid.of(rois, shape, tuple(input.shape), spatial_scale, sampling_ratio, aligned, table.dtype)
    if pool_mode == 0:
        _maximum(table, grid, output, argmax_y, argmax_x)
        return
    out = output.new_empty(len(rois), *shape, input.shape[1], dtype=table.dtype)
    for part in grid.parts():
        cells, weights = part.means()
        bags = F.embedding_bag(cells, table, per_sample_weights=weights, mode="sum")
        out[part.chosen] = bags.view(-1, *out.shape[1:])
    output.copy_(out.permute(0, 3, 1, 2))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """The gradient of ``roi_align_forward`` with respect to the map; regions have none.

    Args:
        grad_output: (N, C, aligned_height, aligned_width).
        argmax_y, argmax_x: what the forward wrote.
        grad_input: output, (B, C, H, W), zeros before.
    """
    if not grad_output.numel() or not grad_input.numel():
        return
    shape, size = (aligned_height, aligned_width), tuple(grad_input.shape)
    compiled = _compiled(grad_output, pool_mode)
    if compiled is not None:
        rois = rois.to(grad_output.dtype)
        grad_input.copy_(
            compiled._roi_align_backward(grad_output, rois, spatial_scale, *shape, *size, sampling_ratio, aligned)
        )
        return
    dtype = _exact(grad_output.dtype)
    if pool_mode == 0:
        _maximum_backward(grad_output.to(dtype), rois, argmax_y, argmax_x, grad_input)
        return
    grid = _Grid.of(rois, shape, size, spatial_scale, sampling_ratio, aligned, dtype)
    bins = grad_output.permute(0, 2, 3, 1).to(dtype).reshape(-1, size[1])
    grad = bins.new_zeros(size[0] * size[2] * size[3], size[1])
    for part in grid.parts():
        cells, weights = part.means()
        bin_of = part.chosen[:, None] * (shape[0] * shape[1]) + torch.arange(shape[0] * shape[1], device=bins.device)
        # The weights in the order of the cells: then those of a cell are one bag.
        cells, order = cells.flatten().sort()
        touched, counts = torch.unique_consecutive(cells, return_counts=True)
        bags = F.embedding_bag(
            bin_of.flatten()[order // weights.shape[1]],
            bins,
            counts.cumsum(0) - counts,
            per_sample_weights=weights.flatten()[order],
            mode="sum",
        )
        grad.index_add_(0, touched, bags)
    grad_input.copy_(grad.view(size[0], size[2], size[3], size[1]).permute(0, 3, 1, 2))


def _check(rois: Tensor) -> None:
    negative = (rois[:, 3:] < rois[:, 1:3]).any(1)
    if bool(negative.any()):
        worst = int(negative.nonzero()[0])
        raise UserError(f"RoIAlign: region {worst} has a negative width or height: {rois[worst].tolist()}")


def _compiled(map: Tensor, pool_mode: int) -> Any:
    """torchvision's operators, where its RoIAlign does the same. It has the mean alone; in half precision it takes
    positions in half precision; on a CPU it is several times slower than the sums of this file."""
    known = map.dtype in (torch.float32, torch.float64)
    if pool_mode == 0 or not known or map.device.type == "cpu" or torch.are_deterministic_algorithms_enabled():
        return None
    return torchvision_operators()


def _exact(dtype: torch.dtype) -> torch.dtype:
    """The precision to compute in: positions in half precision would be off by whole cells."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _table(input: Tensor) -> Tensor:
    """The map as (B * H * W, C), a row for each cell; a channels-last map is not copied."""
    return input.permute(0, 2, 3, 1).reshape(-1, input.shape[1]).to(_exact(input.dtype))


@dataclass(frozen=True)
class _Grid:
    """Regions, in cells of the map, and how many samples their bins have. A value for each of N regions."""

    image: Tensor
    start: tuple[Tensor, Tensor]
    """Of rows and of columns, as all pairs here: where the region begins."""
    bin: tuple[Tensor, Tensor]
    """How high and how wide a bin is."""
    ratio: tuple[Tensor, Tensor]
    """Samples of a bin in each direction, int64."""
    most: tuple[int, int]
    """The largest ratio in each direction."""
    adaptive: bool
    """Whether the ratio follows from the size of the region: then samples are at most a cell apart."""
    chosen: Tensor
    """Which regions these are, (N,)."""
    shape: tuple[int, int]
    """Bins in each direction."""
    size: tuple[int, int]
    """Cells of the map in each direction."""

    @classmethod
    def of(
        cls,
        rois: Tensor,
        shape: tuple[int, int],
        size: tuple[int, ...],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool,
        dtype: torch.dtype,
    ) -> _Grid:
        rois = rois.to(dtype)
        image = rois[:, 0].long()
        corners = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
        sides = corners[:, 2:] - corners[:, :2]
        if not aligned:
            sides = sides.clamp(min=1)
        bins = sides / sides.new_tensor([shape[1], shape[0]])
        if sampling_ratio > 0:
            ratio = torch.full_like(bins, sampling_ratio, dtype=torch.long)
            most = (sampling_ratio, sampling_ratio)
        else:
            ratio = torch.where(bins.isfinite(), bins.ceil(), 0.0).clamp(min=0).long()
            columns, rows = ratio.amax(0).tolist()
            most = (rows, columns)
        return cls(
            image,
            (corners[:, 1], corners[:, 0]),
            (bins[:, 1], bins[:, 0]),
            (ratio[:, 1], ratio[:, 0]),
            most,
            sampling_ratio <= 0,
            torch.arange(len(rois), device=rois.device),
            shape,
            (size[2], size[3]),
        )

    def at(self, index: Tensor, most: tuple[int, int]) -> _Grid:
        """Some of the regions, by their positions here."""

        def pick(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return pair[0][index], pair[1][index]

        return _Grid(
            self.image[index],
            pick(self.start),
            pick(self.bin),
            pick(self.ratio),
            most,
            self.adaptive,
            self.chosen[index],
            self.shape,
            self.size,
        )

    def parts(self, channels: int = 1) -> Iterator[_Grid]:
        """Groups of regions with about as many samples, so that little is computed for nothing, and in each no more
        values than ``BLOCK``: weights, or ``channels`` of each sample."""
        if not self.adaptive:
            yield from self._blocks(torch.arange(len(self.image), device=self.image.device), self.most, channels)
            return
        steps = torch.stack(self.ratio).clamp(min=1)
        for unit, least in ((2, 4), (4, 16), (16, 64)):  # few groups: large ratios are rounded up
            steps = torch.where(steps > least, (steps + unit - 1) // unit * unit, steps)
        pairs, group = torch.unique(steps, dim=1, return_inverse=True)
        for number, (rows, columns) in enumerate(pairs.T.tolist()):
            yield from self._blocks((group == number).nonzero()[:, 0], (rows, columns), channels)

    def _blocks(self, index: Tensor, most: tuple[int, int], channels: int) -> Iterator[_Grid]:
        each = self.shape[0] * self.shape[1] * most[0] * most[1] * max(4, channels)
        for block in index.split(max(1, BLOCK // each)):
            yield self.at(block, most)

    def samples(self, axis: int) -> tuple[Tensor, Tensor]:
        """Positions of samples in one direction, (N, bins, ratio), as cells; and whether a sample counts."""
        start, bin, ratio = (pair[axis][:, None, None] for pair in (self.start, self.bin, self.ratio))
        bins = torch.arange(self.shape[axis], device=start.device)[:, None]
        samples = torch.arange(self.most[axis], device=start.device)
        at = start + bins * bin + (samples + 0.5) * bin / ratio.clamp(min=1)
        return at, (at >= -1) & (at <= self.size[axis]) & (samples < ratio)

    def taps(self, axis: int) -> tuple[Tensor, Tensor]:
        """The two rows (or columns) of cells of each sample and their weights in it, (N, bins, ratio, 2)."""
        at, counts = self.samples(axis)
        last = self.size[axis] - 1
        at = torch.where(counts, at, 0.0).clamp(0, last)
        low = at.floor()
        weights = torch.stack((1 - (at - low), at - low), -1) * counts[..., None]
        return torch.stack((low, low + 1), -1).long().clamp_(max=last), weights

    def cells(self, axis: int) -> tuple[Tensor, Tensor]:
        """Rows (or columns) of cells and their weights in each bin's mean, (N, bins, cells)."""
        if not self.adaptive:
            cells, weights = (value.flatten(2) for value in self.taps(axis))
        else:  # samples at most one cell apart meet at most ratio + 1 cells in a row: no cell is listed twice
            at, counts = self.samples(axis)
            last = self.size[axis] - 1
            at = torch.where(counts, at, 0.0).clamp(0, last)
            cells = at[..., :1].floor() + torch.arange(self.most[axis] + 1, device=at.device)
            shares = (1 - (at[..., None] - cells[..., None, :]).abs()).clamp_(min=0)
            weights = (shares * counts[..., None]).sum(-2)
            cells = cells.long().clamp_(max=last)
        return cells, weights / self.ratio[axis].clamp(min=1)[:, None, None]

    def means(self) -> tuple[Tensor, Tensor]:
        """For each bin of each region the rows of the table and their weights in its mean, both (N * bins, cells)."""
        (rows, high), (columns, wide) = self.cells(0), self.cells(1)
        rows = (self.image[:, None, None] * self.size[0] + rows) * self.size[1]
        index = rows[:, :, None, :, None] + columns[:, None, :, None, :]
        weights = high[:, :, None, :, None] * wide[:, None, :, None, :]
        return index.flatten(3).flatten(0, 2), weights.flatten(3).flatten(0, 2)


def _maximum(table: Tensor, grid: _Grid, output: Tensor, argmax_y: Tensor, argmax_x: Tensor) -> None:
    """Every sample is a bag of four cells; a bin has the highest of its samples, in each channel."""
    channels = table.shape[1]
    for part in grid.parts(channels):
        (rows, high), (columns, wide) = part.taps(0), part.taps(1)
        rows = (part.image[:, None, None, None] * part.size[0] + rows) * part.size[1]
        # (N, bins, bins, samples, samples, 2, 2), of rows and columns in turn.
        cells = rows[:, :, None, :, None, :, None] + columns[:, None, :, None, :, None, :]
        weights = high[:, :, None, :, None, :, None] * wide[:, None, :, None, :, None, :]
        values = F.embedding_bag(
            cells.flatten(5).flatten(0, 4), table, per_sample_weights=weights.flatten(5).flatten(0, 4), mode="sum"
        )
        values = values.view(*cells.shape[:5], channels)
        exist = [
            torch.arange(most, device=table.device) < ratio[:, None]
            for most, ratio in zip(part.most, part.ratio, strict=True)
        ]
        none = ~(exist[0][:, :, None] & exist[1][:, None])  # (N, samples, samples)
        values.masked_fill_(none[:, None, None, ..., None], -torch.inf)
        best, which = values.flatten(3, 4).max(3)  # (N, bins, bins, C)
        empty = none.flatten(1).all(1)[:, None, None, None]
        y = part.samples(0)[0][:, :, None].expand(*which.shape[:3], -1).gather(3, which // part.most[1])
        x = part.samples(1)[0][:, None].expand(*which.shape[:3], -1).gather(3, which % part.most[1])
        for out, value, nothing in ((output, best, 0.0), (argmax_y, y, -1.0), (argmax_x, x, -1.0)):
            out[part.chosen] = value.masked_fill(empty, nothing).permute(0, 3, 1, 2).to(out.dtype)


def _maximum_backward(grad: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor) -> None:
    """The gradient goes to the four cells of the highest sample."""
    _, channels, height, width = grad_input.shape
    y, x = argmax_y.to(grad.dtype), argmax_x.to(grad.dtype)
    grad = grad * ((y > -1) & (y <= height) & (x >= -1) & (x <= width))
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    image = rois[:, 0].long()[:, None] * channels + torch.arange(channels, device=grad.device)
    flat = grad.new_zeros(grad_input.numel())
    for row, high in ((y.floor(), 1 - (y - y.floor())), (y.floor() + 1, y - y.floor())):
        for column, wide in ((x.floor(), 1 - (x - x.floor())), (x.floor() + 1, x - x.floor())):
            rows = image[..., None, None] * height + row.long().clamp(max=height - 1)
            cells = rows * width + column.long().clamp(max=width - 1)
            flat.scatter_add_(0, cells.flatten(), (grad * high * wide).flatten())
    grad_input.copy_(flat.view_as(grad_input))
