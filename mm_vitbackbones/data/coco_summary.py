"""What mmdet makes of a COCO-format file: how much of it is trained on, and why the rest is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

UNUSABLE = "with an unusable mask"
CROWD = "crowds"
"""Why mmdet leaves out an annotation. Crowds are loaded, to be ignored."""

Content = Mapping[str, Sequence[Mapping[str, Any]]]
"""Images, annotations and categories."""


@dataclass
class CocoSummary:
    """What a COCO-format file holds for the classes of a config, as mmdet reads it."""

    path: Path
    images: int
    annotations: int
    dropped: Counter[str] = field(default_factory=Counter)
    """Annotations that are not trained on, by why."""
    left: int = 0
    """Images that are trained on, or tested."""
    why_unusable: str = ""
    """What is wrong with the first mask that is unusable."""
    polygons: int = 0
    """Polygons that are left out of masks that stay: mmdet leaves out those of fewer than three points, or of an odd
    number of coordinates."""

    @property
    def kept(self) -> int:
        """Annotations that are trained on."""
        return self.annotations - sum(self.dropped.values())

    def __str__(self) -> str:
        reasons = {why: f" ({self.why_unusable})" if why == UNUSABLE else "" for why in self.dropped}
        lost = [f"{self.dropped[why]} {why}{detail}" for why, detail in reasons.items()]
        if self.polygons:
            lost.append(f"{self.polygons} polygons of too few or an odd number of coordinates, out of masks that stay")
        return f"{self.path}: {self.left} of {self.images} images, {self.kept} of {self.annotations} annotations" + (
            f" (left out: {', '.join(lost)})" if lost else ""
        )


def summarise(content: Content, path: Path, classes: Sequence[str], dataset: Mapping[str, Any]) -> CocoSummary:
    """What mmdet will leave out, by its own rules, masks apart."""
    summary = CocoSummary(path, len(content["images"]), len(content["annotations"]))
    summary.dropped.update(why for _, why, _ in each_annotation(content, classes, dataset) if why)
    named = {category["id"] for category in content["categories"] if category["name"] in classes}
    # Of any size, and to be ignored or not: mmdet does not check it.
    filled = {annotation["image_id"] for annotation in content["annotations"] if annotation["category_id"] in named}
    smallest, skip_empty = _filters(dataset)
    summary.left = sum(
        min(image["width"], image["height"]) >= smallest and (not skip_empty or image["id"] in filled)
        for image in content["images"]
    )
    return summary


def _filters(dataset: Mapping[str, Any]) -> tuple[float, bool]:
    """The shortest side of images that are not left out, and whether those without objects are."""
    rules = {} if dataset.get("test_mode") else dataset.get("filter_cfg") or {}
    return rules.get("min_size", 0), rules.get("filter_empty_gt", False)


def each_annotation(
    content: Content, classes: Sequence[str], dataset: Mapping[str, Any]
) -> Iterator[tuple[Mapping[str, Any], str, tuple[float, float]]]:
    """Each annotation, why mmdet does not train on it (empty if it does), and height and width of its image."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    smallest, _ = _filters(dataset)
    for annotation in content["annotations"]:
        size = sizes.get(annotation["image_id"])
        if size is None:
            yield annotation, "of images that are not listed", (0, 0)
            continue
        why = _why_dropped(annotation, names, classes, size)
        if why in ("", CROWD) and min(size) < smallest:
            why = f"of images smaller than min_size={smallest}"
        yield annotation, why, size


def _why_dropped(
    annotation: Mapping[str, Any], names: Mapping[Any, str], classes: Sequence[str], size: tuple[float, float]
) -> str:
    if annotation.get("ignore"):
        return "to be ignored"
    if annotation["category_id"] not in names:
        return "of categories that are not listed"
    if names[annotation["category_id"]] not in classes:
        return "of other classes"
    x, y, w, h = annotation["bbox"]
    inside = min(x + w, size[1]) - max(x, 0), min(y + h, size[0]) - max(y, 0)
    if min(w, h) < 1:
        return "thinner than a pixel"
    if min(inside) <= 0:
        return "outside of their image"
    if annotation["area"] <= 0:
        return "with an area of 0 or less"
    return CROWD if annotation.get("iscrowd") else ""
