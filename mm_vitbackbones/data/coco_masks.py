"""Masks of a COCO-format file: what mmdet makes of each in training, and whether pycocotools can read it.

mmdet leaves out an object whose mask it knows to be unusable. It does not know all of them: some end as a traceback,
and others as a mask of other pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log

from mm_vitbackbones import limits
from mm_vitbackbones.data.coco_fields import FURTHEST
from mm_vitbackbones.data.coco_summary import CROWD, UNUSABLE, CocoSummary, Content, each_annotation
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.nodes import nodes, type_name

SAMPLE = 1000
"""How many annotations a sample has, spread evenly over the file."""

MOST = 0.5
"""If a larger share of the masks lie elsewhere than their boxes, the file is refused."""

NO_MASK = "without segmentation"
POINTS = "whose polygons are lists of points, and not [x1, y1, x2, y2, ...]"
FLAT = "whose segmentation is one flat list, and not a list of polygons"
SHORT = "whose polygons have fewer than three points, or an odd number of coordinates"
NO_NUMBERS = f"whose polygons hold something other than numbers below {FURTHEST:g}"
NOT_LISTS = "whose segmentation is neither a list of polygons nor RLE"
OTHER_SIZE = "whose RLE is of another size than the image"
BROKEN = "whose RLE cannot be decoded into an image's pixels"
NEEDS_POLYGONS = "whose mask is RLE where the pipeline asks for polygons (poly2mask=False)"


def check_masks(
    content: Content, summary: CocoSummary, classes: Sequence[str], dataset: Mapping[str, Any], where: str
) -> None:
    """Check the masks of the objects that the pipeline loads, if any, and add to the summary those that it leaves out.

    Raises:
        UserError: if a mask would fail, or give other pixels; or if most lie elsewhere than their boxes.
    """
    step = load_annotations(dataset.get("pipeline"))
    if step is None:
        return
    poly2mask = bool(step.get("poly2mask", True))
    wrong, used, elsewhere = Clauses(), 0, []
    for annotation, why_dropped, size in each_annotation(content, classes, dataset):
        if why_dropped not in ("", CROWD):
            continue
        mask = annotation.get("segmentation")
        why, is_left_out = judge(mask, size, poly2mask)
        if why and not is_left_out:
            wrong.add(why, annotation["id"])
        elif why and not why_dropped:
            summary.dropped[UNUSABLE] += 1
            summary.why_unusable = summary.why_unusable or f"the first is id {annotation['id']!r}, {why}"
        elif not why:
            used += 1
            summary.polygons += lost_polygons(mask)
            if is_elsewhere(mask, annotation["bbox"]):
                elsewhere.append(annotation["id"])
    if wrong:
        raise UserError(
            f"{where}: the pipeline loads masks (with_mask=True), and {summary.path} has {wrong}: correct them, or "
            "train without masks"
        )
    if elsewhere and len(elsewhere) > MOST * used:
        raise UserError(
            f"{where}: {len(elsewhere)} of {used} masks of {summary.path} lie outside of their boxes, such as that of "
            f"id {elsewhere[0]!r}: polygons are [x1, y1, x2, y2, ...] in pixels of the image"
        )


def warn_of_unused_masks(content: Content, dataset: Mapping[str, Any], path: Path, where: str, every: bool) -> None:
    """Log masks that cannot be right, where the pipeline loads none: boxes are trained on all the same. A sample of the
    annotations is looked at, or all of them."""
    if load_annotations(dataset.get("pipeline")) is not None:
        return
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    annotations = content["annotations"]
    wrong = Clauses()
    for annotation in annotations if every else annotations[:: max(1, len(annotations) // SAMPLE)]:
        mask, size = annotation.get("segmentation"), sizes.get(annotation["image_id"])
        if mask and size and (why := judge(mask, size)[0]) not in (SHORT, POINTS):
            wrong.add(why, annotation["id"])
    if wrong:
        print_log(
            f"{where}: {path} has {wrong}; boxes alone are loaded, so this does no harm here",
            logger="current",
            level=logging.WARNING,
        )


class Clauses:
    """Annotations by what is wrong with each, for a message."""

    def __init__(self) -> None:
        self._ids: dict[str, list[Any]] = {}

    def add(self, why: str, key: Any) -> None:
        if why:
            self._ids.setdefault(why, []).append(key)

    def __bool__(self) -> bool:
        return bool(self._ids)

    def __str__(self) -> str:
        return "; ".join(
            f"{len(ids)} annotations {why} (the first is id {ids[0]!r})"
            if len(ids) > 1
            else f"1 annotation {why} (id {ids[0]!r})"
            for why, ids in self._ids.items()
        )


def judge(segmentation: Any, size: Sequence[float], poly2mask: bool = True) -> tuple[str, bool]:
    """What is wrong with a mask in training, and whether mmdet leaves the object out because of it.

    Args:
        size: height and width of the image.
        poly2mask: as of mmdet's ``LoadAnnotations``.

    Returns:
        a clause that goes with "annotations", empty for a mask that can be used; and whether mmdet leaves out the
        object. If not, training would fail, or learn other pixels.
    """
    if not segmentation:
        return NO_MASK, False
    if isinstance(segmentation, list):
        why, used = _polygons(segmentation, poly2mask)
        return (why, False) if why else ("", False) if used else (_why_short(segmentation), True)
    if not poly2mask:
        return NEEDS_POLYGONS, True
    if not isinstance(segmentation, dict):
        return NOT_LISTS, False
    counts = segmentation.get("counts")
    if segmentation.get("size") is None or not isinstance(counts, (list, str)):
        return BROKEN, True
    return _rle(counts, segmentation["size"], size), False


def judge_for_metric(segmentation: Any, size: Sequence[float]) -> str:
    """What is wrong with a mask for pycocotools, which leaves out nothing; a clause as ``judge`` returns it."""
    why, _ = judge(segmentation, size)
    if why or not isinstance(segmentation, list):
        return why
    if len(segmentation[0]) < 6 or any(len(polygon) % 2 for polygon in segmentation):
        return SHORT  # the first one decides how all are read
    return next((why for polygon in segmentation if (why := _fault(polygon))), "")


def lost_polygons(segmentation: Any) -> int:
    """How many polygons mmdet leaves out of a mask that it uses."""
    return sum(not _is_kept(polygon) for polygon in segmentation) if isinstance(segmentation, list) else 0


def is_elsewhere(segmentation: Any, box: Sequence[float]) -> bool:
    """Whether a mask that can be used, of polygons, has no point in common with its box (x, y, width, height)."""
    if not isinstance(segmentation, list):
        return False
    points = np.concatenate([np.asarray(polygon, float) for polygon in segmentation if _is_kept(polygon)])
    x, y = points[0::2], points[1::2]
    return bool(x.max() < box[0] or x.min() > box[0] + box[2] or y.max() < box[1] or y.min() > box[1] + box[3])


def too_long() -> str:
    """What is wrong with an object whose outlines would take gigabytes."""
    limit = f"the limit of {limits.OUTLINES.value:,} pixels ({limits.SWITCH}=10 multiplies it)"
    return f"whose polygons are longer than {limit}"


def _is_kept(polygon: Any) -> bool:
    return len(polygon) >= 6 and len(polygon) % 2 == 0


def _polygons(segmentation: Sequence[Any], poly2mask: bool) -> tuple[str, int]:
    """What is wrong with the polygons that mmdet keeps, and their number."""
    used, length = 0, 0.0
    for polygon in segmentation:
        if not isinstance(polygon, (list, str, dict)):
            return FLAT, 0
        if not _is_kept(polygon):
            continue
        if why := _fault(polygon, text=poly2mask):
            return why, 0
        length += outline_length(polygon)
        used += 1
    if length > limits.OUTLINES.value:
        return too_long(), 0
    return "", used


def _fault(polygon: Any, text: bool = True) -> str:
    """What is wrong with the numbers of a polygon. Those that are written as text are taken by some."""
    try:
        points = np.array(polygon)
        numbers = points.astype(float)
    except (ValueError, TypeError, OverflowError):
        return NO_NUMBERS
    if points.ndim != 1:
        return POINTS if points.ndim > 1 else NO_NUMBERS
    is_good = (np.abs(numbers) <= FURTHEST).all() and (text or points.dtype.kind != "U")
    return "" if is_good else NO_NUMBERS


def outline_length(polygon: Any) -> float:
    """The length of an outline in pixels, as pycocotools draws it: the longer side of each step."""
    points = np.array(polygon[: len(polygon) // 2 * 2], dtype=float).reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())


def _why_short(segmentation: Sequence[Any]) -> str:
    """Why mmdet keeps none of these polygons."""
    first = segmentation[0]
    pairs = len(segmentation) > 2 and all(len(polygon) == 2 for polygon in segmentation)
    return POINTS if pairs or (isinstance(first, list) and first and isinstance(first[0], list)) else SHORT


def _rle(counts: list[Any] | str, rle_size: Any, size: Sequence[float]) -> str:
    if not isinstance(rle_size, list) or rle_size != [*size]:
        return OTHER_SIZE
    try:
        runs = decode_counts(counts) if isinstance(counts, str) else np.array([int(count) for count in counts])
    except (ValueError, TypeError, OverflowError):
        return BROKEN
    # pycocotools leaves pixels after the last run as they are in memory.
    return "" if len(runs) and runs.min() >= 0 and runs.sum() == size[0] * size[1] else BROKEN


def decode_counts(text: str) -> np.ndarray:
    """The lengths of runs in compressed RLE.

    A number takes one or more characters of six bits, from "0" on: five of its bits, the lowest first, and one that
    says whether more follow. The highest bit is the sign. From the fourth number on they are differences to the number
    two places before.

    Raises:
        ValueError: for other characters, or an end within a number.
    """
    bits = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - ord("0")
    if not len(bits) or bits.min() < 0 or bits.max() > 63 or bits[-1] & 32:
        raise ValueError("no compressed RLE")
    last = np.flatnonzero(bits & 32 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if lengths.max() > 7:
        raise ValueError("a number of more than 32 bits")
    shifts = 5 * (np.arange(len(bits)) - np.repeat(first, lengths))
    numbers = np.add.reduceat((bits & 31) << shifts, first)
    numbers -= np.where(bits[last] & 16, 1 << (5 * lengths), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def load_annotations(pipeline: Any) -> Mapping[str, Any] | None:
    """The step of a pipeline's config that loads masks, wherever it is in it; None if there is none."""
    found = (node for _, node in nodes(pipeline, "") if type_name(node) == "LoadAnnotations")
    return next((node for node in found if isinstance(node, Mapping) and node.get("with_mask")), None)
