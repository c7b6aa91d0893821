"""Label maps against ground truth: the confusion of classes, IoU, accuracy and boundary IoU."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from mm_vitbackbones.analysis.values import mean

IGNORED = 255
"""The label of pixels that count for nothing."""

BOUNDARY = 0.02
"""How far a pixel of a boundary is from it, as a part of the image's diagonal; Cheng et al. 2021, "Boundary IoU"."""


def confusion(found: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes) pixels of the class of a row that have the label of a column.

    Args:
        found, truth: label maps (H, W), of labels below ``classes``. Where ``truth`` is ``IGNORED``, nothing counts.
    """
    counted = truth != IGNORED
    pairs = truth[counted].astype(np.int64) * classes + found[counted].astype(np.int64)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def boundary_confusion(found: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """(3, classes): pixels near the boundary of the same class in both, in ``found`` alone, and in ``truth`` alone.

    A region's boundary is what is in it and at most ``BOUNDARY`` times the diagonal from what is not. The edge of the
    image is one, as in the authors' program.
    """
    width = max(1, round(BOUNDARY * float(np.hypot(*truth.shape))))
    counted = truth != IGNORED
    result = np.zeros((3, classes), np.int64)
    for label in np.union1d(np.unique(found), np.unique(truth[counted])):
        if label < classes:
            one, other = _boundary((found == label) & counted, width), _boundary(truth == label, width)
            result[:, label] = (one & other).sum(), (one & ~other).sum(), (other & ~one).sum()
    return result


def _boundary(region: np.ndarray, width: int) -> np.ndarray:
    padded = np.pad(region.astype(np.uint8), 1)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return region & (inner == 0)


@dataclass
class Segmentation:
    """An evaluation of a set of images.

    Attributes:
        classes: their names.
        keys: of the images, (I,).
        each: (I, K, 3), the pixels of each class in an image: in both maps, in ``found``, in ``truth``.
        boundaries: (I, K, 3), the same of boundaries: in both, in ``found`` alone, in ``truth`` alone.
        table: (K, K) pixels of the class of a row that have the label of a column.
    """

    classes: list[str]
    keys: list[str]
    each: np.ndarray
    boundaries: np.ndarray
    table: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """(K,) of each class; nan for one that is nowhere."""
        return iou(self.each.sum(axis=0))

    @property
    def accuracy(self) -> np.ndarray:
        """(K,) the share of its pixels that have their class; nan for one without pixels."""
        both, _, truth = self.each.sum(axis=0).T
        return both / np.where(truth > 0, truth, np.nan)

    @property
    def pixel_accuracy(self) -> float:
        """The share of all pixels that have their class."""
        return float(np.trace(self.table) / max(1, self.table.sum()))

    @property
    def boundary_iou(self) -> np.ndarray:
        """(K,) IoU of the boundaries of a class, over all images; nan for one that is nowhere."""
        both, found, truth = self.boundaries.sum(axis=0).T
        union = both + found + truth
        return both / np.where(union > 0, union, np.nan)

    @property
    def image_iou(self) -> np.ndarray:
        """(I,) the mean IoU of the classes of each image that are in its ground truth or found."""
        return np.array([mean(iou(one)) for one in self.each])


def iou(pixels: np.ndarray) -> np.ndarray:
    """(..., K) from (..., K, 3) pixels in both, in ``found``, in ``truth``; nan for a class that is nowhere."""
    both, found, truth = np.moveaxis(pixels, -1, 0)
    union = found + truth - both
    return both / np.where(union > 0, union, np.nan)


class Collector:
    """Takes one image after the other."""

    def __init__(self, classes: list[str]) -> None:
        self.classes = classes
        self._keys: list[str] = []
        self._each: list[np.ndarray] = []
        self._boundaries: list[np.ndarray] = []
        self._table = np.zeros((len(classes), len(classes)), np.int64)

    def add(self, key: str, found: np.ndarray, truth: np.ndarray) -> None:
        """An image.

        Args:
            found, truth: label maps (H, W).

        Raises:
            ValueError: they have different sizes, or a label that stands for no class.
        """
        if found.shape != truth.shape:
            sizes = " and ".join(f"{height}x{width}" for height, width in (found.shape, truth.shape))
            raise ValueError(f"its label map and its ground truth have different sizes, {sizes}")
        for what, labels in (("label map", found[truth != IGNORED]), ("ground truth", truth[truth != IGNORED])):
            if (highest := int(labels.max(initial=0))) >= len(self.classes):
                raise ValueError(f"its {what} has the label {highest}, and there are {len(self.classes)} classes")
        table = confusion(found, truth, len(self.classes))
        self._table += table
        self._keys.append(key)
        self._each.append(np.stack([np.diag(table), table.sum(axis=0), table.sum(axis=1)], axis=1))
        self._boundaries.append(boundary_confusion(found, truth, len(self.classes)).T)

    def result(self) -> Segmentation:
        empty = np.zeros((0, len(self.classes), 3), np.int64)
        each, boundaries = np.array([*self._each]), np.array([*self._boundaries])
        if not self._keys:
            each = boundaries = empty
        return Segmentation(self.classes, self._keys, each, boundaries, self._table)
