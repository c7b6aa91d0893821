"""Two runs on the same images: their differences, with intervals of a paired bootstrap over images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mm_vitbackbones.analysis.detection import Detection, average_precision
from mm_vitbackbones.analysis.segmentation import Segmentation, iou
from mm_vitbackbones.analysis.values import mean

RESAMPLES = 500
LEVEL = 95
"""Percent of the resamples that an interval holds."""


@dataclass
class Difference:
    """Of one run to another, for each class and, last, for their mean.

    Attributes:
        first, second: (K + 1,) values of both.
        low, high: (K + 1,) the interval of second - first; nan where no resample has a value.
    """

    first: np.ndarray
    second: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def difference(self) -> np.ndarray:
        return self.second - self.first


def bootstrap(
    first: Callable[[np.ndarray], np.ndarray],
    second: Callable[[np.ndarray], np.ndarray],
    images: int,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Draw images with replacement, the same for both runs, and measure both each time.

    Args:
        first, second: the values (K,) of a run, from how many times each image is drawn, (I,).
        images: their number.
    """
    once = np.ones(images)
    values = [_with_mean(run(once)) for run in (first, second)]
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        times = np.bincount(rng.integers(images, size=images), minlength=images).astype(float)
        drawn.append(_with_mean(second(times)) - _with_mean(first(times)))
    low, high = np.full(len(values[0]), np.nan), np.full(len(values[0]), np.nan)
    for place, column in enumerate(np.array(drawn).reshape(resamples, -1).T):
        if (there := column[~np.isnan(column)]).size:
            low[place], high[place] = np.percentile(there, [50 - LEVEL / 2, 50 + LEVEL / 2])
    return Difference(values[0], values[1], low, high)


def _with_mean(values: np.ndarray) -> np.ndarray:
    return np.append(values, mean(values))


def ap_of(run: Detection) -> Callable[[np.ndarray], np.ndarray]:
    """AP of each class, the mean over COCO's thresholds, from how many times each image counts."""
    matches = run.matches

    def measure(times: np.ndarray) -> np.ndarray:
        values = []
        for one in matches:
            weights, objects = times[one.images], float(one.objects @ times)
            each = [
                average_precision(hit, weights * counted, objects)
                for hit, counted in zip(one.hit, one.counted, strict=True)
            ]
            values.append(float(np.mean(each)))
        return np.array(values)

    return measure


def iou_of(run: Segmentation) -> Callable[[np.ndarray], np.ndarray]:
    """IoU of each class, from how many times each image counts."""
    return lambda times: iou(np.tensordot(times, run.each, axes=1))
