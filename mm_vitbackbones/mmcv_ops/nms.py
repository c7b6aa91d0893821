"""Non-maximum suppression: of boxes that overlap, the ones with the highest scores remain.

The decisions are those of the compiled operators, to the last bit: the same operations in the same order and, as
these, in single precision. A box is (x1, y1, x2, y2); with ``offset`` 1 it is ``x2 - x1 + 1`` wide.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mm_vitbackbones.mmcv_ops.compiled import torchvision_operators

TILE_CPU, TILE_CUDA = (128, 2048), (512, 16384)
"""Boxes that are compared at once, candidates and others. On a CPU the tile stays in its cache."""


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """The indices of the boxes that remain, from the highest score to the lowest.

    From the highest score down, a box remains if its IoU with no remaining box is above the threshold.

    Args:
        boxes: (N, 4). Of half precision, they are compared in single precision.
        scores: (N,).

    Returns:
        (K,), int64.

    Source: mmcv's documentation of ``mmcv.ops.nms``; ``torchvision.ops.nms`` is the same with an offset of 0.
    """
    if not len(boxes):
        return boxes.new_empty(0, dtype=torch.long)
    threshold = float(np.float32(iou_threshold))
    order = scores.sort(0, descending=True)[1]  # among equal scores in mmcv's order, which torchvision's is not
    boxes = boxes[order]
    compiled = torchvision_operators()
    if compiled is not None and offset == 0 and boxes.dtype == torch.float32:
        ranks = torch.arange(len(boxes), 0, -1, dtype=torch.float32, device=boxes.device)
        return order[compiled.nms(boxes, ranks, threshold)]
    return order[_remaining(_single(boxes), threshold, offset)]


def _single(boxes: Tensor) -> Tensor:
    return boxes if boxes.dtype == torch.float64 else boxes.float()


def _remaining(boxes: Tensor, threshold: float, offset: int) -> Tensor:
    """The positions of the boxes that remain; ``boxes`` are in the order of their scores.

    In each round the first boxes that are left are candidates. What remains of them is decided among themselves, and
    what they suppress of the others is left out of the next rounds.
    """
    rows, columns = TILE_CPU if boxes.device.type == "cpu" else TILE_CUDA
    # Five rows: x1, y1, x2, y2, area.
    sides = boxes[:, 2:] - boxes[:, :2] + offset
    left = torch.cat((boxes.T, (sides[:, 0] * sides[:, 1])[None]))
    positions = torch.arange(len(boxes), device=boxes.device)
    kept = []
    while len(positions):
        remain = _decide(_above(left[:, :rows], left[:, :rows], threshold, offset))
        first = left[:, :rows][:, remain]
        kept.append(positions[:rows][remain])
        left, positions = left[:, rows:], positions[rows:]
        if len(positions):
            alive = torch.cat([~_above(first, part, threshold, offset).any(0) for part in left.split(columns, 1)])
            left, positions = left[:, alive], positions[alive]
    return torch.cat(kept)


def _above(first: Tensor, second: Tensor, threshold: float, offset: int) -> Tensor:
    """(M, N): whether the IoU is above the threshold. Operations in place: memory is what takes the time."""
    x1, y1, x2, y2, area = first[:, :, None]
    width = torch.minimum(x2, second[2]).sub_(torch.maximum(x1, second[0])).add_(offset).clamp_(min=0)
    height = torch.minimum(y2, second[3]).sub_(torch.maximum(y1, second[1])).add_(offset).clamp_(min=0)
    intersection = width.mul_(height)
    return intersection.div_(torch.add(area, second[4]).sub_(intersection)) > threshold


def _decide(above: Tensor) -> Tensor:
    """Which of N boxes remain, in the order of their scores; ``above`` (N, N) says which overlap.

    A box remains if no remaining box before it overlaps with it. Starting with all, each pass makes the decision for
    one more box right, at least; mostly a few passes are enough. When nothing changes, all are right.
    """
    before = above.triu_(1).float()  # row i: the boxes after i that i suppresses
    remain = torch.ones(len(before), dtype=torch.bool, device=before.device)
    while True:
        now = remain.float() @ before < 0.5
        if torch.equal(now, remain):
            return now
        remain = now


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS: a box that overlaps with a better one keeps a lower score.

    Again and again the box with the highest score is taken out, and the scores of the others are multiplied by a
    weight of their IoU with it. ``method`` 0 (naive): 0 from the threshold on, else 1. 1 (linear): 1 - IoU from the
    threshold on, else 1. 2 (gaussian): exp(-IoU^2 / sigma). A box whose score falls below ``min_score`` is left out.

    Args:
        boxes: (N, 4), on the CPU.
        scores: (N,).
        dets: output, (N, 5): the boxes in the order in which they were taken, with their scores then. Rows after the
            K-th have no meaning.

    Returns:
        (K,), int64: the indices of the boxes in ``dets``.

    Source: Bodla et al., "Soft-NMS", arXiv 1704.04503; mmcv's documentation of ``mmcv.ops.soft_nms``.
    """
    # Seven columns move together: x1, y1, x2, y2, score, area, index. Where scores are equal, the order of the columns
    # decides; it is that of the compiled operator, which fills a gap with the last column.
    items = np.empty((6, len(boxes)), np.float32)
    items[:4] = boxes.detach().float().numpy().T
    items[4] = scores.detach().float().numpy()
    items[5] = (items[2] - items[0] + np.float32(offset)) * (items[3] - items[1] + np.float32(offset))
    indices = np.arange(len(boxes))
    threshold, sigma32, lowest = np.float32(iou_threshold), np.float32(sigma), np.float32(min_score)
    count, step = len(boxes), 0
    with np.errstate(all="ignore"):  # two boxes without area have no IoU
        while step < count:
            best = step + _first_highest(items[4, step:count])
            items[:, [step, best]] = items[:, [best, step]]
            indices[[step, best]] = indices[[best, step]]
            overlap = _overlaps(items[:, step], items[:, step + 1 : count], offset)
            if method == 0:
                weight = np.where(overlap >= threshold, np.float32(0), np.float32(1))
            elif method == 1:
                weight = np.where(overlap >= threshold, 1 - overlap, np.float32(1))
            else:
                # Rounded once, as the exponential of the C library: an order may hang on the last bit.
                weight = np.exp((-(overlap * overlap) / sigma32).astype(np.float64)).astype(np.float32)
            step += 1
            items[4, step:count] *= weight
            alive = ~(items[4, step:count] < lowest)
            remain = step + int(alive.sum())
            if remain < count:
                gaps = step + np.flatnonzero(~alive[: remain - step])
                fillers = (remain + np.flatnonzero(alive[remain - step :]))[::-1]
                items[:, gaps], indices[gaps] = items[:, fillers], indices[fillers]
                count = remain
    dets[:count] = torch.from_numpy(items[:5, :count].T).to(dets.dtype)
    return torch.from_numpy(indices[:count].copy())


def _first_highest(scores: np.ndarray) -> int:
    """The first of the highest scores. One that is not a number is higher than none, and none is higher than it."""
    best = int(scores.argmax())
    if np.isnan(scores[best]) and not np.isnan(scores[0]):
        best = int(np.where(np.isnan(scores), -np.inf, scores).argmax())
    return 0 if np.isnan(scores[0]) else best


def _overlaps(box: np.ndarray, others: np.ndarray, offset: int) -> np.ndarray:
    """The IoU of a box with others; both have x1, y1, x2, y2 first and the area in the last row."""
    zero, one = np.float32(0), np.float32(offset)
    width = np.maximum(zero, np.minimum(box[2], others[2]) - np.maximum(box[0], others[0]) + one)
    height = np.maximum(zero, np.minimum(box[3], others[3]) - np.maximum(box[1], others[1]) + one)
    intersection = width * height
    overlaps: np.ndarray = intersection / (box[-1] + others[-1] - intersection)
    return overlaps


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """NMS that also says which box suppressed which.

    From the highest score down, a box that remains takes all boxes that are left and whose IoU with it is at least the
    threshold (``nms`` asks for more than the threshold).

    Args:
        dets: (N, 5), x1, y1, x2, y2 and score.

    Returns:
        For each box that remains, its index and those of the boxes that it took, in the order of their scores.

    Source: mmcv's documentation of ``mmcv.ops.nms_match``.
    """
    return list(_groups(dets.detach().cpu().float(), np.float32(iou_threshold)))


def _groups(dets: Tensor, threshold: np.float32) -> Iterator[list[int]]:
    order = dets[:, 4].sort(0, descending=True)[1].numpy()
    sorted_boxes = dets[:, :4].numpy()[order].T
    area = (sorted_boxes[2] - sorted_boxes[0]) * (sorted_boxes[3] - sorted_boxes[1])
    left = np.concatenate((sorted_boxes, area[None]))
    with np.errstate(all="ignore"):
        while len(order):
            taken = _overlaps(left[:, 0], left[:, 1:], 0) >= threshold
            yield [int(order[0]), *order[1:][taken].tolist()]
            left, order = left[:, 1:][:, ~taken], order[1:][~taken]
