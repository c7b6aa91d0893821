"""Which objects a detector can be trained on at all: their sizes and shapes against its anchors or its cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SIDES = (0, 8, 16, 32, 64, 128, 256, np.inf)
"""Bounds of the side of a box, as the square root of its area, in pixels of the network's input."""

ASPECTS = (0, 1 / 3, 2 / 3, 1.5, 3, np.inf)
"""Bounds of the width of a box divided by its height."""


@dataclass
class Level:
    """Anchors of a level: all have these shapes, one set at each cell.

    Attributes:
        stride: pixels from cell to cell, along x and y.
        shapes: (A, 4), corners x1 y1 x2 y2 of those of the first cell.
    """

    stride: tuple[float, float]
    shapes: np.ndarray


def levels_of(generator: Any) -> list[Level]:
    """Those of an anchor generator of mmdet, once it is built."""
    strides = [stride if isinstance(stride, (tuple, list)) else (stride, stride) for stride in generator.strides]
    shapes = [np.asarray(each, float) for each in generator.base_anchors]
    return [Level((float(x), float(y)), each) for (x, y), each in zip(strides, shapes, strict=True)]


def best_iou(boxes: np.ndarray, size: tuple[float, float], levels: Sequence[Level]) -> np.ndarray:
    """The highest IoU of each box with any anchor.

    Along an axis, the overlap of two intervals of given lengths is largest where their centres are nearest. So only the
    cells around a box's centre are looked at: two along each axis, for each shape.

    Args:
        boxes: (n, 4), corners x1 y1 x2 y2, in pixels of the network's input.
        size: the input's height and width.
        levels: of the detector.
    """
    best = np.zeros(len(boxes))
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for level in levels:
        for shape in level.shapes:
            starts = []
            for axis in (0, 1):
                cells = max(1, int(np.ceil(size[1 - axis] / level.stride[axis])))
                centre = (boxes[:, axis] + boxes[:, axis + 2]) / 2 - (shape[axis] + shape[axis + 2]) / 2
                first = np.floor(centre / level.stride[axis])
                starts.append([np.clip(first + more, 0, cells - 1) * level.stride[axis] for more in (0, 1)])
            wide, high = shape[2] - shape[0], shape[3] - shape[1]
            for x in starts[0]:
                for y in starts[1]:
                    across = np.minimum(boxes[:, 2], x + shape[2]) - np.maximum(boxes[:, 0], x + shape[0])
                    along = np.minimum(boxes[:, 3], y + shape[3]) - np.maximum(boxes[:, 1], y + shape[1])
                    both = np.clip(across, 0, None) * np.clip(along, 0, None)
                    best = np.maximum(best, both / np.maximum(area + wide * high - both, np.spacing(1)))
    return best


def input_scale(height: int, width: int, scale: tuple[int, int] | None, keep_ratio: bool) -> tuple[float, float]:
    """What a test's ``Resize`` multiplies a height and a width by; 1 without one.

    Args:
        scale: the long and the short side that an image has to fit into; without ``keep_ratio`` width and height.
    """
    if scale is None:
        return 1.0, 1.0
    if not keep_ratio:
        return scale[1] / height, scale[0] / width
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return factor, factor


@dataclass
class Matchable:
    """Objects by side (rows, ``SIDES``) and aspect (columns, ``ASPECTS``).

    Attributes:
        counts: how many there are.
        matched: how many of them an anchor fits; of a detector without anchors, how many fill a cell of its finest
            level.
    """

    counts: np.ndarray
    matched: np.ndarray

    @property
    def share(self) -> float:
        """Of all objects."""
        return float(self.matched.sum() / self.counts.sum()) if self.counts.sum() else float("nan")


def tabulate(boxes: np.ndarray, fits: np.ndarray) -> Matchable:
    """Count boxes by side and aspect.

    Args:
        boxes: (n, 4), corners, in pixels of the network's input.
        fits: (n,) whether a box can be matched.
    """
    wide, high = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    row = np.searchsorted(SIDES, np.sqrt(wide * high), side="right") - 1
    column = np.searchsorted(ASPECTS, wide / np.maximum(high, np.spacing(1)), side="right") - 1
    shape = (len(SIDES) - 1, len(ASPECTS) - 1)
    counts, matched = np.zeros(shape, int), np.zeros(shape, int)
    row, column = np.clip(row, 0, shape[0] - 1), np.clip(column, 0, shape[1] - 1)
    np.add.at(counts, (row, column), 1)
    np.add.at(matched, (row[fits], column[fits]), 1)
    return Matchable(counts, matched)
