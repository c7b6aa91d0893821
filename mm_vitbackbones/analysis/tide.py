"""TIDE's error types, and the AP that fixing each would give.

Bolya et al. 2020, "TIDE: A General Toolbox for Identifying Object Detection Errors", section 2. A detection that finds
no object has one of five errors, by its highest IoU with objects of its own class and of others:

=========  ==========================================================================================================
class      at least 0.5 with an object of another class: right place, wrong class
location   0.1 to 0.5 with an object of its class: right class, wrong place
both       0.1 to 0.5 with an object of another class: wrong class and place
duplicate  at least 0.5 with an object of its class that a detection with a higher score has
background at most 0.1 with every object
=========  ==========================================================================================================

An object that no detection has, and that no error of class or location would have if it were fixed, is ``missed``.

Several may apply; as in the authors' program, the first of location, class, duplicate, background, both is taken. So
may several detections be near one object: fixed, the one with the best score finds it, and the others are removed, as
are those near an object that is found already. Each type is fixed by itself; the authors' program repairs, of errors of
both types near one object, the one with the best score alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mm_vitbackbones.analysis.detection import Image, average_precision
from mm_vitbackbones.analysis.values import mean

FOREGROUND, BACKGROUND = 0.5, 0.1
"""The paper's thresholds of IoU: t_f, to find an object, and t_b, below which all is background."""

ERRORS = ("class", "location", "both", "duplicate", "background", "missed")


@dataclass
class Faults:
    """The errors of an image.

    Attributes:
        kinds: (n,) index in ``ERRORS`` of each detection, -1 for none.
        near: (n,) the object that a detection of the wrong class or place is near; -1 otherwise.
        missed: (m,) whether an object is missed.
    """

    kinds: np.ndarray
    near: np.ndarray
    missed: np.ndarray


def faults(image: Image) -> Faults:
    """The error type of each detection and object of an image."""
    count, objects = len(image.labels), np.flatnonzero(~image.truth_ignored)
    kinds, near = np.full(count, -1), np.full(count, -1)
    iou = image.iou[:, objects]
    same = image.labels[:, None] == image.truth_labels[objects][None]
    own, other = np.where(same, iou, 0.0), np.where(same, 0.0, iou)
    taken = np.where(image.found[objects][None], own, 0.0)
    for index in np.flatnonzero(~image.hit & ~image.ignored):
        if not len(objects):
            kinds[index] = ERRORS.index("background")
        elif BACKGROUND <= own[index].max() <= FOREGROUND:
            kinds[index], near[index] = ERRORS.index("location"), objects[own[index].argmax()]
        elif other[index].max() >= FOREGROUND:
            kinds[index], near[index] = ERRORS.index("class"), objects[other[index].argmax()]
        elif taken[index].max() >= FOREGROUND:
            kinds[index] = ERRORS.index("duplicate")
        elif iou[index].max() <= BACKGROUND:
            kinds[index] = ERRORS.index("background")
        else:
            kinds[index] = ERRORS.index("both")
    missed = ~image.found & ~image.truth_ignored
    missed[near[near >= 0]] = False
    return Faults(kinds, near, missed)


@dataclass
class Tide:
    """The errors of a set of images.

    Attributes:
        base: (K,) AP at IoU 0.5 of each class; nan without objects.
        counts: (6, K) how many errors there are of each type; of detections by their own class.
        fixed: (6, K) AP at IoU 0.5 if all errors of a type were fixed.
        no_false, no_missed: (K,) AP without false detections, and if only the objects were counted that are found.
    """

    base: np.ndarray
    counts: np.ndarray
    fixed: np.ndarray
    no_false: np.ndarray
    no_missed: np.ndarray

    @property
    def gains(self) -> np.ndarray:
        """(6,) what fixing each type adds to the mean AP over classes. A class of which every object is missed has none
        left that counts: it is not in the mean then."""
        return np.array([mean(row) for row in self.fixed]) - mean(self.base)


def tide(images: Sequence[Image], classes: int) -> Tide:
    """The errors of detections and what they cost.

    Args:
        images: of a ``Detection``.
        classes: their number.
    """
    each = [faults(image) for image in images]
    table = _Table(images, each)
    objects = _count([image.truth_labels[~image.truth_ignored] for image in images], classes)
    found = _count([image.truth_labels[image.found & ~image.truth_ignored] for image in images], classes)
    missed = _count([image.truth_labels[one.missed] for image, one in zip(images, each, strict=True)], classes)
    base = table.score(table.labels, table.hit, table.counted, objects)
    counts, fixed = np.zeros((len(ERRORS), classes), int), np.zeros((len(ERRORS), classes))
    for number, name in enumerate(ERRORS):
        wrong = table.kinds == number
        counts[number] = missed if name == "missed" else np.bincount(table.labels[wrong], minlength=classes)
        labels, hit, counted, wanted = table.labels, table.hit, table.counted & ~wrong, objects
        if name in ("class", "location"):
            repaired = wrong & table.repairs
            hit, counted = hit | repaired, counted | repaired
            labels = np.where(repaired, table.near_labels, labels)
        elif name == "missed":
            counted, wanted = table.counted, objects - missed
        fixed[number] = table.score(labels, hit, counted, wanted)
    no_false = table.score(table.labels, table.hit, table.counted & table.hit, objects)
    return Tide(base, counts, fixed, no_false, table.score(table.labels, table.hit, table.counted, found))


class _Table:
    """All detections, the best score first.

    Attributes:
        repairs: whether a detection would find an object if its class, or its place, were right.
    """

    def __init__(self, images: Sequence[Image], each: Sequence[Faults]) -> None:
        empty: list[np.ndarray] = [np.zeros(0, int)]
        scores = np.concatenate([np.zeros(0), *(image.scores for image in images)])
        order = np.argsort(-scores, kind="mergesort")
        self.scores = scores[order]
        self.labels = np.concatenate([*empty, *(image.labels for image in images)])[order]
        self.hit = np.concatenate([np.zeros(0, bool), *(image.hit for image in images)])[order]
        ignored = np.concatenate([np.zeros(0, bool), *(image.ignored for image in images)])
        self.counted = ~ignored[order]
        self.kinds = np.concatenate([*empty, *(one.kinds for one in each)])[order]
        pairs = [*zip(images, each, strict=True)]
        self.repairs = np.concatenate([np.zeros(0, bool), *(_repairs(*pair) for pair in pairs)])[order]
        self.near_labels = np.concatenate([*empty, *(_near_labels(*pair) for pair in pairs)])[order]

    def score(self, labels: np.ndarray, hit: np.ndarray, counted: np.ndarray, objects: np.ndarray) -> np.ndarray:
        """The AP of each class, (K,)."""
        values = []
        for label, count in enumerate(objects):
            chosen = (labels == label) & counted
            values.append(average_precision(hit[chosen], np.ones(int(chosen.sum())), float(count)))
        return np.array(values, float)


def _repairs(image: Image, one: Faults) -> np.ndarray:
    """Of the errors of one type near an object that nothing has, the first, which has the best score."""
    chosen, done = np.zeros(len(image.labels), bool), set()
    for index in np.flatnonzero(one.near >= 0):
        key = int(one.near[index]), int(one.kinds[index])
        if not image.found[key[0]] and key not in done:
            done.add(key)
            chosen[index] = True
    return chosen


def _near_labels(image: Image, one: Faults) -> np.ndarray:
    labels = image.labels.copy()
    near = one.near >= 0
    labels[near] = image.truth_labels[one.near[near]]
    return labels


def _count(labels: Sequence[np.ndarray], classes: int) -> np.ndarray:
    return np.bincount(np.concatenate([np.zeros(0, int), *labels]), minlength=classes)
