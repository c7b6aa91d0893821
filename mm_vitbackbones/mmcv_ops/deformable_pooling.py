"""Average pooling of regions whose bins are moved by learnt offsets (Dai et al., Deformable Convolutional Networks)."""

from __future__ import annotations

import torch
from torch import Tensor

from mm_vitbackbones.mmcv_ops.precision import widened
from mm_vitbackbones.mmcv_ops.sampling import bilinear


def deformable_pooling(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> Tensor:
    """The mean of what is sampled in each bin of each region.

    Args:
        input: (B, C, H, W).
        rois: (R, 5), the image's number and x1, y1, x2, y2, which become pixels times ``spatial_scale`` minus 0.5.
        offset: (R, 2, rows, columns), x and y in units of ``gamma`` times the region's width and height, or empty.
        size: rows and columns of bins.
        sampling_ratio: samples per bin and axis; 0 means one per pixel, rounded up.

    Returns:
        (R, C, rows, columns), with gradients of ``input`` and ``offset``. A sample up to one pixel outside of the map
        has the value at its border, and one further out is zero.
    """
    rows, columns = size
    corners = widened(rois[:, 1:]) * spatial_scale - 0.5
    start, extent = corners[:, :2], corners[:, 2:] - corners[:, :2]  # x and y
    if sampling_ratio > 0:
        samples = extent.new_full(extent.shape, sampling_ratio).long()
    else:
        samples = (extent / extent.new_tensor([columns, rows])).ceil().long().clamp(min=0)
    output = widened(input).new_zeros(len(rois), input.shape[1], rows, columns)
    kinds = torch.cat([rois[:, :1].long(), samples], 1)
    for kind in kinds.unique(dim=0).tolist():  # regions of one image with equal numbers of samples
        image, across, down = kind
        if across == 0 or down == 0:
            continue  # a region without a pixel
        chosen = (kinds == kinds.new_tensor(kind)).all(1).nonzero()[:, 0]
        x = _positions(start[chosen, 0], extent[chosen, 0], columns, across)[:, None, :, None, :]
        y = _positions(start[chosen, 1], extent[chosen, 1], rows, down)[:, :, None, :, None]
        if offset.numel():
            moved = gamma * extent[chosen][:, :, None, None] * widened(offset[chosen])
            x = x + moved[:, 0, :, :, None, None]
            y = y + moved[:, 1, :, :, None, None]
        y, x = torch.broadcast_tensors(y, x)  # (regions, rows, columns, samples down, samples across)
        output = output.index_copy(0, chosen, _at(widened(input[image]), y, x).mean((3, 4)).permute(0, 3, 1, 2))
    return output


def _positions(start: Tensor, extent: Tensor, bins: int, samples: int) -> Tensor:
    """The samples' positions of each region along one axis: (regions, bins, samples)."""
    steps = torch.arange(bins * samples, device=start.device, dtype=start.dtype).view(bins, samples) + 0.5
    return start[:, None, None] + extent[:, None, None] * steps / (bins * samples)


def _at(image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The values of a map (C, H, W) at positions (...): (..., C)."""
    height, width = image.shape[1:]
    near = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    table = image.permute(1, 2, 0)[:, :, None]
    read = bilinear(table, y.clamp(0, height - 1)[..., None], x.clamp(0, width - 1)[..., None])[..., 0, :]
    return read * near[..., None]


def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """``output`` receives ``deformable_pooling``."""
    size = (pooled_height, pooled_width)
    output.copy_(deformable_pooling(input, rois, offset, size, spatial_scale, sampling_ratio, gamma))


def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Adds to the gradients of the input and, where there are any, of the offsets."""
    size = (pooled_height, pooled_width)
    map, moves = input.detach().requires_grad_(), offset.detach().requires_grad_()
    with torch.enable_grad():
        output = deformable_pooling(map, rois, moves, size, spatial_scale, sampling_ratio, gamma)
    if not output.requires_grad:  # no region has a pixel
        return
    grads = torch.autograd.grad(output, (map, moves), grad_output.to(output.dtype), allow_unused=True)
    for total, grad in zip((grad_input, grad_offset), grads, strict=True):
        if grad is not None:
            total += grad
