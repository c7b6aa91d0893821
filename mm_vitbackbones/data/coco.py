"""Errors in a detection data set in COCO's format, found before a run begins.

With mmdet alone most of them end as an AP of 0, or as the right boxes with the wrong names.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from mm_vitbackbones.errors import UserError, did_you_mean
from mm_vitbackbones.progress import track

SAMPLE = 100
"""How many images a sample has, spread evenly over the data set."""

MOST = 0.5
"""If a larger share of the boxes look like two corners, the file is refused."""


@dataclass
class CocoSummary:
    """What a COCO-format file holds for the classes of a config, as mmdet reads it."""

    path: Path
    categories: list[str]
    images: int
    annotations: int
    dropped: Counter[str] = field(default_factory=Counter)
    """Annotations that are not trained on, by why."""
    left: int = 0
    """Images that are trained on, or tested."""

    @property
    def kept(self) -> int:
        """Annotations that are trained on."""
        return self.annotations - sum(self.dropped.values())

    def __str__(self) -> str:
        lost = ", ".join(f"{count} {why}" for why, count in self.dropped.items())
        return f"{self.path}: {self.left} of {self.images} images, {self.kept} of {self.annotations} annotations" + (
            f" (left out: {lost})" if lost else ""
        )


def check_coco(
    dataset: Mapping[str, Any], path: Path, classes: Sequence[str], where: str, every: bool, seen: bool = False
) -> CocoSummary:
    """Check a COCO-format file and a sample of its images, or all of them, against a config's data set.

    Images that have been ``seen``, for another data set of the same files, are not checked.

    Raises:
        UserError: for the first error that is found.
    """
    content = read_coco(path, where)
    categories = [category["name"] for category in content["categories"]]
    check_classes(classes, categories, path, where)
    check_boxes(content, path, where)
    folder = Path(dataset.get("data_root") or "", (dataset.get("data_prefix") or {}).get("img") or "")
    if not seen:
        check_pictures(content["images"], folder, where, every)
    summary = summarise(content, path, classes, dataset)
    if not summary.left or not summary.kept:
        raise UserError(f"{where}: no image of {path} has an annotation that can be trained on; {summary}")
    return summary


def read_coco(path: Path, where: str) -> dict[str, Any]:
    """The content of a file, with images, annotations and categories in it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = {key: content[key] for key in ("images", "annotations", "categories")}
        _ = [category["name"] for category in found["categories"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{where}: {path} is not in COCO's format ({type(error).__name__}: {error}); "
            "it needs images, annotations and categories"
        ) from None
    if not found["images"]:
        raise UserError(f"{where}: {path} lists no images")
    if not found["annotations"]:
        raise UserError(f"{where}: {path} holds no annotations, so there is nothing to learn or to measure")
    return found


def check_classes(classes: Sequence[str], categories: Sequence[str], path: Path, where: str) -> None:
    """Check that the classes are categories of the file, in its order: mmdet numbers classes by the file's order."""
    unknown = [name for name in classes if name not in categories]
    if unknown:
        near = did_you_mean(unknown[0], categories)
        raise UserError(
            f"{where}: the classes {some(unknown)} are not among the categories of {path}, {some(categories)}{near}; "
            "set metainfo=dict(classes=(...)) of the dataset to names out of these"
        )
    in_order = [name for name in categories if name in classes]
    if in_order != [*classes]:
        raise UserError(
            f"{where}: the classes are in another order than the categories of {path}, and boxes would get the wrong "
            f"names; set metainfo=dict(classes={tuple(in_order)!r})"
        )


def check_boxes(content: Mapping[str, Any], path: Path, where: str) -> None:
    """Check that boxes are (x, y, width, height), not two corners."""
    sizes = {image["id"]: (image.get("width", 0), image.get("height", 0)) for image in content["images"]}
    boxes = [(a["bbox"], sizes.get(a.get("image_id"), (0, 0))) for a in content["annotations"] if a.get("bbox")]
    outside = [(b, s) for b, s in boxes if b[0] + b[2] > s[0] + 1 or b[1] + b[3] > s[1] + 1]
    corners = [b for b, s in outside if b[0] < b[2] <= s[0] + 1 and b[1] < b[3] <= s[1] + 1]
    if boxes and len(corners) > MOST * len(boxes):
        raise UserError(
            f"{where}: {len(corners)} of {len(boxes)} boxes of {path} look like two corners (x1, y1, x2, y2), such as "
            f"{corners[0]}: COCO's format is (x, y, width, height)"
        )


def check_pictures(images: Sequence[Mapping[str, Any]], folder: Path, where: str, every: bool) -> None:
    """Check that a sample of the images exists or, with ``every``, that each of them can be read."""
    some_images = images if every else images[:: max(1, len(images) // SAMPLE)]
    missing = [image["file_name"] for image in some_images if not (folder / image["file_name"]).is_file()]
    if missing:
        looked = f"{len(missing)} of {len(some_images)} images that were looked for"
        raise UserError(f"{where}: {looked} are not in {folder}, such as {missing[0]}: set data_prefix=dict(img=...)")
    if not every:
        return
    broken = []
    for image in track(images, f"{where}: looking at images"):
        try:
            with Image.open(folder / image["file_name"]) as picture:
                picture.load()
        except (OSError, SyntaxError, ValueError) as error:
            broken.append((image["file_name"], error))
    if broken:
        raise UserError(
            f"{where}: {len(broken)} of {len(images)} images cannot be read, such as {folder / broken[0][0]} "
            f"({broken[0][1]}): fix them, or take them out of the annotation file"
        )


def summarise(
    content: Mapping[str, Any], path: Path, classes: Sequence[str], dataset: Mapping[str, Any]
) -> CocoSummary:
    """What mmdet will leave out, by its own rules."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    annotations, rules = content["annotations"], dataset.get("filter_cfg") or {}
    summary = CocoSummary(path, [*names.values()], len(content["images"]), len(annotations))
    sizes = {image["id"]: (image.get("width", 0), image.get("height", 0)) for image in content["images"]}
    filled = set()
    for annotation in annotations:
        why = _why_dropped(annotation, names, classes, sizes)
        if why:
            summary.dropped[why] += 1
        if names.get(annotation.get("category_id", -1)) in classes:  # of any size: mmdet does not check it
            filled.add(annotation.get("image_id"))
    small = rules.get("min_size", 0)
    test_mode, skip_empty = dataset.get("test_mode", False), rules.get("filter_empty_gt", False)
    summary.left = sum(
        test_mode or (min(size) >= small and (not skip_empty or image in filled)) for image, size in sizes.items()
    )
    return summary


def _why_dropped(
    annotation: Mapping[str, Any],
    names: Mapping[int, str],
    classes: Sequence[str],
    sizes: Mapping[Any, tuple[float, float]],
) -> str | None:
    width, height = sizes.get(annotation.get("image_id"), (0, 0))
    x, y, w, h = annotation.get("bbox") or (0, 0, 0, 0)
    inside = min(x + w, width) - max(x, 0), min(y + h, height) - max(y, 0)
    if annotation.get("image_id") not in sizes:
        return "of images that are not listed"
    if annotation.get("ignore"):
        return "to be ignored"
    if names.get(annotation.get("category_id", -1)) not in classes:
        return "of other classes"
    if min(w, h) < 1 or annotation.get("area", 1) <= 0:
        return "thinner than a pixel"
    if min(inside) <= 0:
        return "outside of their image"
    return "crowds" if annotation.get("iscrowd") else None


def some(names: Sequence[str], limit: int = 5) -> str:
    """Some of many names, for messages."""
    listed = ", ".join(map(repr, names[:limit]))
    return listed if len(names) <= limit else f"{listed} and {len(names) - limit} more"
