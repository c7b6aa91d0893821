"""Detections against objects, as pycocotools matches them: what all tables and curves of detection are made from."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""The IoUs of COCO's AP."""

RECALLS = np.linspace(0, 1, 101)
"""Where COCO's AP looks at a precision-recall curve."""

SIZES = ("all", "small", "medium", "large")
"""Of objects, by their area in pixels: below 32 x 32, below 96 x 96, and larger."""

MOST = 100
"""Detections of an image and class that count, as in COCO's AP."""


@dataclass
class Image:
    """The detections and objects of an image, by label and IoU 0.5.

    Attributes:
        key: the image's id.
        labels, scores, boxes: of n detections; boxes are (n, 4), x y width height in pixels.
        ids: of the detections, their places in the list that was given.
        hit: (n,) whether an object was found by it.
        ignored: (n,) whether it counts for nothing, as it lies in a crowd.
        truth_labels, truth_boxes, truth_ids, found: of m objects; found is whether a detection has it.
        truth_ignored: (m,) whether it is a crowd.
        iou: (n, m) of each with each, whatever their classes.
    """

    key: Any
    labels: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    ids: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray
    truth_labels: np.ndarray
    truth_boxes: np.ndarray
    truth_ids: np.ndarray
    found: np.ndarray
    truth_ignored: np.ndarray
    iou: np.ndarray


@dataclass
class ClassMatches:
    """The detections of a class over all images, the best score first.

    Attributes:
        scores: (n,).
        images: (n,) index of the image of each.
        hit: (T, n) whether it finds an object, by threshold.
        counted: (T, n) whether it counts.
        objects: (I,) number of objects in each image that are to be found.
        ids: (n,) place in the list of detections.
    """

    scores: np.ndarray
    images: np.ndarray
    hit: np.ndarray
    counted: np.ndarray
    objects: np.ndarray
    ids: np.ndarray


@dataclass
class Detection:
    """An evaluation.

    Args:
        truth: a data set in COCO's format: ``images``, ``annotations`` and ``categories``. It is not changed.
        found: detections in COCO's results format.
        categories: ids of the categories that count, in the order of labels; all by default.
        kind: ``bbox`` or ``segm``.
    """

    truth: Mapping[str, Any]
    found: Sequence[Mapping[str, Any]]
    categories: Sequence[Any] | None = None
    kind: str = "bbox"
    classes: list[str] = field(init=False)

    def __post_init__(self) -> None:
        names = {each["id"]: str(each["name"]) for each in self.truth["categories"]}
        self.categories = list(names) if self.categories is None else [*self.categories]
        self.classes = [names[key] for key in self.categories]
        self._evaluated = _evaluate(self.truth, self.found, self.categories, self.kind)

    @property
    def keys(self) -> list[Any]:
        """The ids of all images, in pycocotools' order."""
        return list(self._evaluated.params.imgIds)

    @cached_property
    def matches(self) -> list[ClassMatches]:
        """For each class. Objects of all sizes."""
        cocoeval, images = self._evaluated, len(self.keys)
        sizes = len(cocoeval.params.areaRng)
        return [
            _class_matches(cocoeval.evalImgs[k * sizes * images : k * sizes * images + images])
            for k in range(len(self.classes))
        ]

    @cached_property
    def precision(self) -> np.ndarray:
        """AP by (threshold, class, size), as pycocotools computes it; nan where there is no object."""
        values = self._evaluated.eval["precision"][..., -1].astype(np.float64)  # (T, R, K, A)
        values[values == -1] = np.nan
        return values.mean(axis=1)

    @cached_property
    def recall(self) -> np.ndarray:
        """The share of objects that are found at any score, by (threshold, class, size)."""
        values = self._evaluated.eval["recall"][..., -1].astype(np.float64)
        values[values == -1] = np.nan
        return values

    @cached_property
    def curves(self) -> np.ndarray:
        """Precision by (threshold, recall, class), at ``RECALLS``."""
        values = self._evaluated.eval["precision"][..., 0, -1].astype(np.float64)
        values[values == -1] = np.nan
        return values

    @cached_property
    def counts(self) -> np.ndarray:
        """Number of objects that are to be found, by (class, size)."""
        cocoeval, images = self._evaluated, len(self.keys)
        sizes = len(cocoeval.params.areaRng)
        found = np.zeros((len(self.classes), sizes), int)
        for k in range(len(self.classes)):
            for a in range(sizes):
                start = (k * sizes + a) * images
                entries = [entry for entry in cocoeval.evalImgs[start : start + images] if entry]
                found[k, a] = sum(int((np.asarray(entry["gtIgnore"]) == 0).sum()) for entry in entries)
        return found

    @cached_property
    def images(self) -> list[Image]:
        """Each image by itself."""
        return [*map(self._image, range(len(self.keys)))]

    def _image(self, index: int) -> Image:
        from pycocotools import mask

        cocoeval, key = self._evaluated, self.keys[index]
        images, sizes = len(self.keys), len(cocoeval.params.areaRng)
        found: list[tuple[int, Any, bool, bool]] = []
        wanted: list[tuple[int, Any, bool, bool]] = []
        for k, category in enumerate(cocoeval.params.catIds):
            entry = cocoeval.evalImgs[k * sizes * images + index]
            if entry is None:
                continue
            shown = {each["id"]: each for each in cocoeval._dts[key, category]}
            there = {each["id"]: each for each in cocoeval._gts[key, category]}
            hits, ignored = np.asarray(entry["dtMatches"])[0] > 0, np.asarray(entry["dtIgnore"])[0] > 0
            found += [(k, shown[i], bool(h), bool(g)) for i, h, g in zip(entry["dtIds"], hits, ignored, strict=True)]
            has, crowd = np.asarray(entry["gtMatches"])[0] > 0, np.asarray(entry["gtIgnore"]) > 0
            wanted += [(k, there[i], bool(h), bool(c)) for i, h, c in zip(entry["gtIds"], has, crowd, strict=True)]
        found.sort(key=lambda each: -each[1]["score"])
        shape = "bbox" if self.kind == "bbox" else "segmentation"
        iou = np.zeros((len(found), len(wanted)))
        if found and wanted:
            iscrowd = [int(each["iscrowd"]) for _, each, _, _ in wanted]
            iou = mask.iou([each[shape] for _, each, _, _ in found], [each[shape] for _, each, _, _ in wanted], iscrowd)
        return Image(
            key,
            labels=np.array([label for label, *_ in found], int),
            scores=np.array([each["score"] for _, each, _, _ in found], float),
            boxes=np.array([each["bbox"] for _, each, _, _ in found], float).reshape(-1, 4),
            ids=np.array([each["id"] - 1 for _, each, _, _ in found], int),
            hit=np.array([hit for _, _, hit, _ in found], bool),
            ignored=np.array([ignored for *_, ignored in found], bool),
            truth_labels=np.array([label for label, *_ in wanted], int),
            truth_boxes=np.array([each["bbox"] for _, each, _, _ in wanted], float).reshape(-1, 4),
            truth_ids=np.array([each["id"] - 1 for _, each, _, _ in wanted], int),
            found=np.array([has for _, _, has, _ in wanted], bool),
            truth_ignored=np.array([crowd for *_, crowd in wanted], bool),
            iou=np.asarray(iou, float).reshape(len(found), len(wanted)),
        )


def _evaluate(
    truth: Mapping[str, Any], found: Sequence[Mapping[str, Any]], categories: Sequence[Any], kind: str
) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    known = COCO()
    # pycocotools takes an id of 0 for no match, so objects are numbered here; and it writes into the dicts.
    annotations = [
        {"iscrowd": 0, "area": each["bbox"][2] * each["bbox"][3], **each, "id": number}
        for number, each in enumerate(truth["annotations"], start=1)
    ]
    known.dataset = {"images": [*truth["images"]], "annotations": annotations, "categories": [*truth["categories"]]}
    with contextlib.redirect_stdout(io.StringIO()):
        known.createIndex()
        shapes = [_as_result(each, kind) for each in found]
        results = known.loadRes(shapes) if shapes else COCO()
        evaluation = COCOeval(known, results, kind)
        evaluation.params.catIds = [*categories]
        evaluation.params.maxDets = [1, 10, MOST]
        evaluation.params.iouThrs, evaluation.params.recThrs = THRESHOLDS, RECALLS
        evaluation.evaluate()
        _sort_by_label(evaluation, categories)
        evaluation.accumulate()
    return evaluation


def _sort_by_label(evaluation: Any, categories: Sequence[Any]) -> None:
    """pycocotools sorts categories by their ids; here they are in the order of labels."""
    given = evaluation.params.catIds
    if given == [*categories]:
        return
    size = len(evaluation.evalImgs) // max(1, len(given))
    place = {key: number for number, key in enumerate(given)}
    evaluation.evalImgs = [
        entry for key in categories for entry in evaluation.evalImgs[place[key] * size : (place[key] + 1) * size]
    ]
    for params in (evaluation.params, evaluation._paramsEval):
        params.catIds = [*categories]


def _as_result(each: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """A copy with what counts. pycocotools measures the size of a mask by the box if there is one."""
    shape = "bbox" if kind == "bbox" else "segmentation"
    return {key: copy.copy(each[key]) for key in ("image_id", "category_id", shape, "score")}


def _class_matches(entries: Sequence[Any]) -> ClassMatches:
    """Those of a class, from what pycocotools keeps for each image."""
    scores, images, ids = [np.zeros(0)], [np.zeros(0, int)], [np.zeros(0, int)]
    hit, counted = [np.zeros((len(THRESHOLDS), 0), bool)], [np.zeros((len(THRESHOLDS), 0), bool)]
    objects = np.zeros(len(entries), int)
    for index, entry in enumerate(entries):
        if entry is None:
            continue
        scores.append(np.asarray(entry["dtScores"], float))
        ids.append(np.asarray(entry["dtIds"], int) - 1)
        images.append(np.full(len(entry["dtScores"]), index))
        hit.append(np.asarray(entry["dtMatches"]).reshape(len(THRESHOLDS), -1) > 0)
        counted.append(np.asarray(entry["dtIgnore"]).reshape(len(THRESHOLDS), -1) == 0)
        objects[index] = int((np.asarray(entry["gtIgnore"]) == 0).sum())
    order = np.argsort(-np.concatenate(scores), kind="mergesort")
    return ClassMatches(
        scores=np.concatenate(scores)[order],
        images=np.concatenate(images)[order],
        hit=np.concatenate(hit, axis=1)[:, order],
        counted=np.concatenate(counted, axis=1)[:, order],
        objects=objects,
        ids=np.concatenate(ids)[order],
    )


def average_precision(hit: np.ndarray, weights: np.ndarray, objects: float) -> float:
    """COCO's AP of detections whose best score is first.

    Args:
        hit: (n,) whether each finds an object.
        weights: (n,) how many times each counts, such as 0 for those in crowds.
        objects: the number of objects.

    Returns:
        The mean, over ``RECALLS``, of the best precision at this recall or a higher one; nan without objects.
    """
    if objects <= 0:
        return float("nan")
    true, false = np.cumsum(weights * hit), np.cumsum(weights * ~hit)
    precision = true / np.maximum(true + false, np.spacing(1))
    best = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(true / objects, RECALLS, side="left")
    return float(np.append(best, 0.0)[places].mean())
