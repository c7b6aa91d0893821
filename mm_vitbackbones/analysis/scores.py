"""What scores say: F1 and the best threshold, calibration, the confusion of classes, the worst and best images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mm_vitbackbones.analysis.detection import ClassMatches, Image

BINS = 10
"""Of scores, in the figure of calibration."""


@dataclass
class F1Curve:
    """Precision, recall and F1 of the detections with at least a score, at IoU 0.5.

    Attributes:
        scores: (n,) all distinct scores, the highest first.
        precision, recall, f1: (n,).
    """

    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    @property
    def best(self) -> int | None:
        """The place of the highest F1, of several the one with the highest score; None without any."""
        return int(self.f1.argmax()) if self.f1.size else None


def f1_curve(matches: Sequence[ClassMatches]) -> F1Curve:
    """The curve of one class, or of the detections of several classes together."""
    scores = np.concatenate([np.zeros(0), *(one.scores[one.counted[0]] for one in matches)])
    hit = np.concatenate([np.zeros(0, bool), *(one.hit[0][one.counted[0]] for one in matches)])
    objects = sum(int(one.objects.sum()) for one in matches)
    order = np.argsort(-scores, kind="mergesort")
    scores, hit = scores[order], hit[order]
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if scores.size else np.zeros(0, int)
    true, shown = np.cumsum(hit)[last], last + 1
    precision = true / np.maximum(shown, 1)
    recall = true / max(objects, 1)
    return F1Curve(scores[last], precision, recall, 2 * true / np.maximum(shown + objects, 1))


@dataclass
class Calibration:
    """How often detections are right, by their scores.

    Attributes:
        counts: (BINS,) detections in each bin of scores, of equal widths.
        scores, right: (BINS,) their mean score, and the share that finds an object at IoU 0.5; nan in an empty bin.
        error: the mean difference of the two, by detection: the expected calibration error.
    """

    counts: np.ndarray
    scores: np.ndarray
    right: np.ndarray
    error: float


def calibration(matches: Sequence[ClassMatches]) -> Calibration:
    """Of all classes together. Scores are from 0 to 1."""
    scores = np.concatenate([np.zeros(0), *(one.scores[one.counted[0]] for one in matches)])
    hit = np.concatenate([np.zeros(0), *(one.hit[0][one.counted[0]] for one in matches)])
    bins = np.clip((scores * BINS).astype(int), 0, BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    there = np.where(counts > 0, counts, np.nan)
    mean = np.bincount(bins, weights=scores, minlength=BINS) / there
    right = np.bincount(bins, weights=hit, minlength=BINS) / there
    gaps = np.nan_to_num(np.abs(mean - right)) * counts
    return Calibration(counts, mean, right, float(gaps.sum() / counts.sum()) if counts.sum() else float("nan"))


def pairs(image: Image, score: float, iou: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Which object each detection is on, whatever its class: the free one with the highest IoU, an object of its own
    class first, the detection with the best score first.

    Args:
        score: detections below are left out.
        iou: the least that counts.

    Returns:
        (n,) the object, -1 for none, -2 for a detection that is left out or lies in a crowd; and (m,) the detection of
        each object, -1 for none, -2 for a crowd.
    """
    on, by = np.full(len(image.labels), -1), np.full(len(image.truth_labels), -1)
    by[image.truth_ignored] = -2
    on[(image.scores < score) | image.ignored] = -2
    for own in (True, False):  # first the right ones: a detection of another class takes no object from them
        for index in np.flatnonzero(on == -1):
            fits = (by == -1) & (image.iou[index] >= iou)
            if own:
                fits &= image.truth_labels == image.labels[index]
            if fits.any():
                on[index] = np.where(fits, image.iou[index], -1).argmax()
                by[on[index]] = index
    for index in np.flatnonzero(on == -1):
        if (image.iou[index][image.truth_ignored] >= iou).any():
            on[index] = -2
    return on, by


def confusion(images: Sequence[Image], classes: int, score: float) -> np.ndarray:
    """(classes + 1, classes + 1): objects of the class of a row that are detected as that of a column. The last row has
    detections of what is background, the last column objects that nothing detects."""
    found = np.zeros((classes + 1, classes + 1), int)
    for image in images:
        on, by = pairs(image, score)
        np.add.at(found, (image.truth_labels[on[on >= 0]], image.labels[on >= 0]), 1)
        np.add.at(found, (classes, image.labels[on == -1]), 1)
        np.add.at(found, (image.truth_labels[by == -1], classes), 1)
    return found


@dataclass
class Judged:
    """An image with the detections of at least a score.

    Attributes:
        right: (n,) detections that find an object of their class; false: (n,) the others that are shown.
        missed: (m,) objects that no detection of their class is on.
    """

    image: Image
    right: np.ndarray
    false: np.ndarray
    missed: np.ndarray

    @property
    def errors(self) -> int:
        return int(self.false.sum() + self.missed.sum())

    @property
    def f1(self) -> float:
        """1 where nothing is wrong."""
        right = int(self.right.sum())
        return 1.0 if not self.errors else 2 * right / (2 * right + self.errors)


def judge(image: Image, score: float) -> Judged:
    """Which detections of an image are right, and which objects are missed."""
    on, by = pairs(image, score)
    right = np.zeros(len(on), bool)
    right[on >= 0] = image.labels[on >= 0] == image.truth_labels[on[on >= 0]]
    missed = by == -1
    taken = np.flatnonzero(by >= 0)
    missed[taken] = image.labels[by[taken]] != image.truth_labels[taken]
    return Judged(image, right, (on > -2) & ~right, missed)


def ranked(judged: Sequence[Judged]) -> list[Judged]:
    """The worst image first: the lowest F1, of equal ones that with the most errors; at the end, of those without an
    error that with the most objects."""
    return sorted(judged, key=lambda one: (one.f1, -one.errors, int(one.right.sum())))
