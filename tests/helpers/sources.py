"""Small data sets of other programs, and what the checks say of what they are converted to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mm_vitbackbones import libraries
from mm_vitbackbones.cli import convert_dataset
from mm_vitbackbones.data.coco import check_coco
from mm_vitbackbones.data.coco_summary import CocoSummary
from mm_vitbackbones.data.masks import check_masks

WIDTH, HEIGHT = 40, 30
SIDEWAYS = 6
"""The EXIF orientation of a photograph that was taken in portrait."""


def write_image(path: Path, orientation: int = 1, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.full((size[1], size[0], 3), 90, np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, **({"exif": exif} if orientation != 1 else {}))
    return path


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def write_json(path: Path, content: Any) -> Path:
    return write_text(path, json.dumps(content))


def write_mask(path: Path, values: Any, palette: list[int] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(np.asarray(values, np.uint8))
    if palette:
        mask.putpalette(palette)
    mask.save(path)
    return path


def convert(source: Path, *arguments: str) -> Path:
    """Run the command; the folder that it makes."""
    out = (source.parent if source.is_dir() else source.parent.parent) / "out"
    convert_dataset.main([str(source), str(out), *arguments])
    return out


def detection_config(out: Path, split: str, masks: bool = False) -> dict[str, Any]:
    content = annotations(out, split)
    load = dict(type="LoadAnnotations", with_bbox=True, with_mask=masks)
    return dict(
        type="CocoDataset",
        data_root=str(out),
        ann_file=f"annotations/{split}.json",
        data_prefix=dict(img="images/"),
        metainfo=dict(classes=[category["name"] for category in content["categories"]]),
        pipeline=[dict(type="LoadImageFromFile"), load, dict(type="PackDetInputs")],
    )


def check(out: Path, split: str = "train", masks: bool = False) -> CocoSummary:
    """What the checks before a training say of a split, every image looked at."""
    libraries.use("mmdet")
    dataset = detection_config(out, split, masks)
    path = out / "annotations" / f"{split}.json"
    summary = check_coco(dataset, path, dataset["metainfo"]["classes"], split, every=True)
    assert summary.kept == summary.annotations - summary.dropped["crowds"], summary
    return summary


def check_segmentation(out: Path, split: str = "train") -> None:
    libraries.use("mmseg")
    classes = (out / "classes.txt").read_text().splitlines()
    suffix = next((out / "images" / split).iterdir()).suffix
    dataset = dict(
        type="BaseSegDataset",
        data_root=str(out),
        data_prefix=dict(img_path=f"images/{split}", seg_map_path=f"masks/{split}"),
        img_suffix=suffix,
        seg_map_suffix=".png",
        metainfo=dict(classes=classes),
        pipeline=[dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")],
    )
    check_masks(dataset, split, every=True)


def annotations(out: Path, split: str = "train") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "annotations" / f"{split}.json").read_text())
    return content


def objects(out: Path, split: str = "train") -> dict[str, list[tuple[str, list[float]]]]:
    """The class and box of each object, by the name of its image."""
    content = annotations(out, split)
    names = {category["id"]: category["name"] for category in content["categories"]}
    images = {image["id"]: image["file_name"] for image in content["images"]}
    found: dict[str, list[tuple[str, list[float]]]] = {name: [] for name in images.values()}
    for each in content["annotations"]:
        found[images[each["image_id"]]].append((names[each["category_id"]], each["bbox"]))
    return found
