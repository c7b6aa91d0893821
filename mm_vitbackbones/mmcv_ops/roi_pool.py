"""RoIPool: the maximum of the cells in each bin of a region of a map.

A region (RoI) is (image, x1, y1, x2, y2) in pixels of the image, and x2, y2 are the last pixels that it covers: it goes
from ``x1 * spatial_scale`` to ``(x2 + 1) * spatial_scale`` on the map. It is divided into bins of equal size, and a bin
has all cells that it touches. Bins outside of the map, and regions without width or height, give zero and have no
gradient.

torchvision's RoIPool rounds the corners of a region to whole cells first. It is another operator, and is not used.
"""

from __future__ import annotations

import torch
from torch import Tensor


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """RoIPool of a map, with any strides.

    Args:
        input: (B, C, H, W).
        rois: (N, 5): image, x1, y1, x2, y2. Their bins are computed in single precision, at least.
        output: output, (N, C, pooled_height, pooled_width).
        argmax: output, int32, of the same shape: the cell of the maximum, ``y * W + x``, the first of several; -1 for a
            bin without cells.

    Source: Girshick, "Fast R-CNN", arXiv 1504.08083, section 2.1; mmcv's documentation of ``mmcv.ops.RoIPool``.
    """
    if not output.numel():
        return
    height, width = input.shape[2:]
    boxes = rois if rois.dtype == torch.float64 else rois.float()
    (top, rows), (left, columns) = (
        _cells(boxes, axis, bins, cells, spatial_scale)
        for axis, bins, cells in ((1, pooled_height, height), (0, pooled_width, width))
    )
    # (N, rows of bins, columns of bins), as are all tables below.
    degenerate = ((boxes[:, 3:] + 1 - boxes[:, 1:3]) * spatial_scale <= 0).any(1)[:, None, None]
    rows, columns = rows[:, :, None].masked_fill(degenerate, 0), columns[:, None, :]
    top, left = top[:, :, None], left[:, None, :]
    image = boxes[:, 0].long()[:, None, None] * height * width
    table = input.permute(0, 2, 3, 1).reshape(-1, input.shape[1])
    best = table.new_full((*torch.broadcast_shapes(rows.shape, columns.shape), table.shape[1]), -torch.inf)
    where = torch.full(best.shape, -1, dtype=torch.int32, device=best.device)
    # Cell by cell of the largest bin, all bins at once.
    for y in range(int(rows.max())):
        for x in range(int(columns.max())):
            inside = (y < rows) & (x < columns)
            cell = torch.where(inside, (top + y) * width + left + x, 0)
            values = table[image + cell]
            better = (values > best) & inside[..., None]
            best = torch.where(better, values, best)
            where = torch.where(better, cell[..., None].int(), where)
    best = best.masked_fill(where < 0, 0)
    output.copy_(best.permute(0, 3, 1, 2))
    argmax.copy_(where.permute(0, 3, 1, 2))


def _cells(boxes: Tensor, axis: int, bins: int, cells: int, spatial_scale: float) -> tuple[Tensor, Tensor]:
    """In one direction: the first cell of each bin, and how many it has; (N, bins), int64."""
    start = (boxes[:, 1 + axis] * spatial_scale)[:, None]
    end = ((boxes[:, 3 + axis] + 1) * spatial_scale)[:, None]
    size = (end - start) / bins
    number = torch.arange(bins, device=boxes.device)
    first = (number * size + start).floor().nan_to_num(0).clamp(0, cells).long()
    after = ((number + 1) * size + start).ceil().nan_to_num(0).clamp(0, cells).long()
    return first, (after - first).clamp(min=0)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """The gradient of ``roi_pool_forward`` with respect to the map: that of a bin goes to the cell of its maximum.

    Args:
        grad_output: (N, C, pooled_height, pooled_width).
        argmax: what the forward wrote.
        grad_input: output, (B, C, H, W), zeros before.
    """
    channels, cells = grad_input.shape[1], grad_input.shape[2] * grad_input.shape[3]
    dtype = grad_output.dtype if grad_output.dtype == torch.float64 else torch.float32
    image = rois[:, 0].long()[:, None] * channels + torch.arange(channels, device=rois.device)
    index = image[..., None, None] * cells + argmax.long().clamp(min=0)
    flat = torch.zeros(grad_input.numel(), dtype=dtype, device=grad_input.device)
    flat.scatter_add_(0, index.flatten(), (grad_output.to(dtype) * (argmax >= 0)).flatten())
    grad_input.copy_(flat.view_as(grad_input))
