"""Errors in a detection data set in COCO's format, found before a run begins.

With mmdet alone most of them end as an AP of 0, as the right boxes with the wrong names, or as objects that are never
trained on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mm_vitbackbones import limits
from mm_vitbackbones.data.coco_fields import (
    BOX_METRIC,
    DATASET,
    MASK_METRIC,
    METRIC,
    check_fields,
    check_sortable,
    check_tables,
    check_unique,
)
from mm_vitbackbones.data.coco_images import check_images
from mm_vitbackbones.data.coco_masks import Clauses, check_masks, judge_for_metric, warn_of_unused_masks
from mm_vitbackbones.data.coco_summary import CocoSummary, Content, summarise
from mm_vitbackbones.data.json_files import read_json, why_doubled
from mm_vitbackbones.errors import UserError, did_you_mean
from mm_vitbackbones.files import why_no_file

MOST = 0.5
"""If a larger share of the boxes look like two corners, the file is refused."""


def check_coco(
    dataset: Mapping[str, Any],
    path: Path,
    classes: Sequence[str],
    where: str,
    every: bool,
    seen: bool = False,
    labelled: bool = True,
) -> CocoSummary:
    """Check a COCO-format file and a sample of its images, or all of them, against a config's data set.

    Args:
        seen: the images were checked for another data set of the same files, and are not checked again.
        labelled: it is trained on or measured by, and so needs annotations.

    Raises:
        UserError: for the first error that is found.
    """
    content = read_coco(path, where, labelled)
    listed: set[Any] = set()

    def counts(annotation: Mapping[str, Any]) -> bool:
        if not listed:
            listed.update(image["id"] for image in content["images"])
        return annotation["image_id"] in listed and not annotation.get("ignore")

    check_fields(content, [DATASET], counts, path, where)
    check_unique(content, path, where)
    check_sizes(content, path, where)
    check_classes(classes, content, path, where)
    check_boxes(content, counts, path, where)
    if not seen:
        check_images(content["images"], dataset, where, every, compare=bool(content["annotations"]))
    summary = summarise(content, path, classes, dataset)
    check_masks(content, summary, classes, dataset, where)
    warn_of_unused_masks(content, dataset, path, where, every)
    if labelled and not (summary.left and summary.kept):
        raise UserError(f"{where}: no image of {path} has an annotation that can be trained on or measured; {summary}")
    return summary


def check_measured(
    path: Path, classes: Sequence[str], metrics: Sequence[str], where: str, sort_categories: bool = False
) -> set[Any]:
    """Check the file that a CocoMetric measures by. pycocotools leaves out nothing that it cannot read.

    Args:
        metrics: of ``bbox``, ``segm``, ``proposal`` and ``proposal_fast``; none if it only writes results, for which
            there may be no annotations.
        sort_categories: as of CocoMetric.

    Returns:
        the ids of its images.

    Raises:
        UserError: for the first error that is found.
    """
    content = read_coco(path, where, labelled=bool(metrics))
    if not metrics:
        content["annotations"] = []
    listed: set[Any] = set()
    named: set[Any] = set()

    def counts(annotation: Mapping[str, Any]) -> bool:
        if not listed:
            listed.update(image["id"] for image in content["images"])
            named.update(category["id"] for category in content["categories"] if category.get("name") in classes)
        return annotation["image_id"] in listed and annotation["category_id"] in named

    readers = [METRIC, *(MASK_METRIC for name in metrics if name == "segm")]
    readers += [BOX_METRIC for name in metrics if name != "segm"]
    check_fields(content, readers, counts, path, where)
    check_unique(content, path, where)
    check_sortable(content, path, where)
    if sort_categories:
        content["categories"].sort(key=lambda category: category["id"])
    check_classes(classes, content, path, where)
    if "segm" in metrics:
        check_sizes(content, path, where)
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        faults = Clauses()
        for annotation in filter(counts, content["annotations"]):
            why = judge_for_metric(annotation.get("segmentation"), sizes[annotation["image_id"]])
            faults.add(why, annotation["id"])
        if faults:
            raise UserError(
                f"{where}: metric='segm' cannot be measured by {path}, which has {faults}: correct them, or measure "
                "metric='bbox' alone"
            )
    return {image["id"] for image in content["images"]}


CONVERT = "`python -m mm_vitbackbones convert_dataset SOURCE OUT` makes one of data of YOLO, VOC, CVAT, labelme"
"""What to do about annotations of another format."""


def check_is_json(path: Path, where: str) -> None:
    """Check that an annotation file may be COCO JSON: neither a folder nor of another format, by its first character.

    Raises:
        UserError: it is none; the message names the converter.
    """
    if kind := why_no_file(path):
        raise UserError(f"{where}: ann_file {path} is {kind}, and no COCO JSON: {CONVERT}")
    try:
        with path.open("rb") as file:
            start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError:
        return  # it is missing, or cannot be read: others say so
    if path.suffix.lower() != ".json" and not start.startswith(b"{"):
        raise UserError(f"{where}: ann_file {path} is no COCO JSON: {CONVERT}")


def read_coco(path: Path, where: str, labelled: bool = True) -> dict[str, list[dict[str, Any]]]:
    """The content of a file: images, annotations (there may be none if not ``labelled``) and categories."""
    check_is_json(path, where)
    try:
        content, doubled = read_json(path)
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{where}: {path} cannot be read ({type(error).__name__}: {error})") from None
    if isinstance(content, dict) and "images" not in content and "shapes" in content:
        raise UserError(f"{where}: {path} is a file of labelme's for one image, and no COCO JSON: {CONVERT}")
    tables = check_tables(content, path, where)
    if doubled:
        raise UserError(f"{where}: {why_doubled(path, doubled)}")
    if not tables["images"]:
        raise UserError(f"{where}: {path} lists no images")
    if labelled and not tables["annotations"]:
        advice = "" if where.startswith("train") else "; to predict alone, set format_only=True of the CocoMetric"
        raise UserError(f"{where}: {path} holds no annotations, so there is nothing to learn or to measure{advice}")
    return tables


def check_classes(classes: Sequence[str], content: Content, path: Path, where: str) -> None:
    """Check that the classes are categories of the file, each once and in its order: mmdet numbers classes by the
    file's order, and each category of a class's name by itself. Categories of other names do not matter."""
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice:
        raise UserError(f"{where}: metainfo names the classes {some(twice)} more than once: name each once")
    categories = [category["name"] for category in content["categories"]]
    unknown = [name for name in classes if name not in categories]
    if unknown:
        near = did_you_mean(str(unknown[0]), categories)
        raise UserError(
            f"{where}: the classes {some(unknown)} are not among the categories of {path}, {some(categories)}{near}; "
            "set metainfo=dict(classes=(...)) of the dataset to names out of these"
        )
    in_order = [category for category in content["categories"] if category["name"] in classes]
    for name, count in Counter(category["name"] for category in in_order).items():
        if count > 1:
            raise UserError(f"{where}: {path} has {_same_name(name, in_order, content)}")
    names = tuple(category["name"] for category in in_order)
    if names != (*classes,):
        raise UserError(
            f"{where}: the classes are in another order than the categories of {path}, and boxes would get the wrong "
            f"names; set metainfo=dict(classes={names!r})"
        )


def _same_name(name: str, in_order: Sequence[Mapping[str, Any]], content: Content) -> str:
    """What becomes of several categories of one name, and what to do."""
    ids = [category["id"] for category in in_order if category["name"] == name]
    used = Counter(annotation["category_id"] for annotation in content["annotations"])
    lone = [key for key in ids if not used[key]] or ids[1:]
    if len(lone) == len(ids):
        lone = ids[1:]
    kept = next(key for key in ids if key not in lone)
    numbers = f"{', '.join(map(repr, ids[:-1]))} and {ids[-1]!r}"
    advice = f"remove the category {', '.join(map(repr, lone))} from the file"
    if any(used[key] for key in lone):
        advice = f"give the annotations of {', '.join(map(repr, lone))} the category_id {kept!r} and {advice}"
    else:
        advice += ", as no annotation has it"
    return (
        f"several categories named {name!r}, the ids {numbers}: mmdet makes a label of each id, and shifts those of "
        f"the classes after it, so that objects get wrong names; {advice}"
    )


def check_sizes(content: Content, path: Path, where: str) -> None:
    """Check that no image is said to have more pixels than are read: each mask takes as many bytes."""
    for image in content["images"]:
        if why := limits.PIXELS.exceeded(image["width"] * image["height"]):
            size = f"{image['width']}x{image['height']}"
            raise UserError(f"{where}: {path} says that the image of id {image['id']!r} is {size}: it has {why}")


def check_boxes(content: Content, counts: Callable[[Mapping[str, Any]], bool], path: Path, where: str) -> None:
    """Check that boxes are (x, y, width, height), not two corners."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    boxes = [(a["bbox"], sizes[a["image_id"]]) for a in content["annotations"] if counts(a)]
    outside = [(b, s) for b, s in boxes if b[0] + b[2] > s[0] + 1 or b[1] + b[3] > s[1] + 1]
    corners = [b for b, s in outside if b[0] < b[2] <= s[0] + 1 and b[1] < b[3] <= s[1] + 1]
    if boxes and len(corners) > MOST * len(boxes):
        raise UserError(
            f"{where}: {len(corners)} of {len(boxes)} boxes of {path} look like two corners (x1, y1, x2, y2), such as "
            f"{corners[0]}: COCO's format is (x, y, width, height)"
        )


def some(names: Sequence[str], limit: int = 5) -> str:
    """Some of many names, for messages."""
    listed = ", ".join(map(repr, names[:limit]))
    return listed or "none" if len(names) <= limit else f"{listed} and {len(names) - limit} more"
