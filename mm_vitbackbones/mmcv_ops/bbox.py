"""Overlaps of boxes."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 2**22
"""Pairs of boxes that are compared at once, at most."""


def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Writes the overlaps of two sets of boxes to ``ious``.

    Of two boxes the intersection is divided by the union (``mode`` 0, IoU), or by the area of the first (``mode`` 1,
    IoF). A box (x1, y1, x2, y2) is ``x2 - x1 + offset`` wide: with ``offset`` 1, x2 is the last pixel that it covers.
    Two boxes without area have no IoU, which is NaN, as in the compiled operator.

    Args:
        bboxes1: (M, 4).
        bboxes2: (N, 4); with ``aligned`` (M, 4).
        ious: output, (M, N); with ``aligned`` (M,), box by box.

    Source: mmcv's documentation of ``mmcv.ops.bbox_overlaps``.
    """
    first, second = _exact(bboxes1), _exact(bboxes2)
    if aligned:
        ious.copy_(_overlaps(first, second, mode, offset))
        return
    rows = max(1, BLOCK // max(1, len(second)))
    for part, out in zip(first.split(rows), ious.split(rows), strict=True):
        out.copy_(_overlaps(part[:, None], second, mode, offset))


def _overlaps(first: Tensor, second: Tensor, mode: int, offset: int) -> Tensor:
    sides = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2]) + offset
    sides = sides.clamp(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    area = _area(first, offset)
    return intersection / (area + _area(second, offset) - intersection if mode == 0 else area)


def _area(boxes: Tensor, offset: int) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0] + offset) * (boxes[..., 3] - boxes[..., 1] + offset)


def _exact(boxes: Tensor) -> Tensor:
    """Areas of boxes overflow in half precision from sides of 256 on."""
    return boxes.float() if boxes.dtype in (torch.float16, torch.bfloat16) else boxes
