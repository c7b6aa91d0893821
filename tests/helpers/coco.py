"""A small data set in COCO's format, with boxes and masks of every form."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from PIL import Image

CLASSES = ("cat", "dog")
WIDTH, HEIGHT = 40, 30


def rectangle(x: float, y: float, w: float, h: float) -> list[float]:
    """A polygon."""
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def runs(x: int, y: int, w: int, h: int) -> dict[str, Any]:
    """Uncompressed RLE of a rectangle: by columns."""
    mask = np.zeros((HEIGHT, WIDTH), int)
    mask[y : y + h, x : x + w] = 1
    flat = np.concatenate([[0], mask.T.ravel(), [1 - mask[-1, -1]]])
    edges = np.flatnonzero(np.diff(flat))
    return {"size": [HEIGHT, WIDTH], "counts": np.diff(np.concatenate([[0], edges])).tolist()}


def compressed(x: int, y: int, w: int, h: int) -> dict[str, Any]:
    from pycocotools import mask

    rle = mask.frPyObjects(runs(x, y, w, h), HEIGHT, WIDTH)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def content() -> dict[str, Any]:
    """Three images with three annotations each: a cat of one polygon, a dog of two polygons, and RLE."""
    rle = [runs(2, 3, 8, 9), compressed(2, 3, 8, 9), runs(2, 3, 8, 9)]
    boxes = [[20, 12, 12, 15], [5, 4, 20, 8], [2, 3, 8, 9]]
    masks = [[rectangle(20, 12, 12, 15)], [rectangle(5, 4, 6, 8), rectangle(15, 4, 10, 8)]]
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(3)],
        "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [
            {
                "id": 1 + 3 * i + k,
                "image_id": i,
                "category_id": (7, 9, 7)[k],
                "bbox": [*box],
                "area": box[2] * box[3],
                "iscrowd": int(i == 2 and k == 2),
                "segmentation": copy.deepcopy(mask),
            }
            for i in range(3)
            for k, (box, mask) in enumerate(zip(boxes, [*masks, rle[i]], strict=True))
        ],
    }


def write_images(root: Path) -> None:
    (root / "images").mkdir()
    for i in range(3):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 40 * i, np.uint8)).save(root / "images" / f"{i}.png")


def dataset(root: Path, masks: bool = False, **arguments: Any) -> dict[str, Any]:
    """The config of a data set whose file is ``boxes.json``."""
    load = dict(type="LoadAnnotations", with_bbox=True, with_mask=masks)
    return dict(
        dict(
            type="CocoDataset",
            data_root=str(root),
            ann_file="boxes.json",
            data_prefix=dict(img="images"),
            metainfo=dict(classes=CLASSES),
            serialize_data=False,
            pipeline=[dict(type="LoadImageFromFile"), load, dict(type="PackDetInputs")],
        ),
        **arguments,
    )


def config(root: Path, masks: bool = False, evaluator: Mapping[str, Any] | None = None, **arguments: Any) -> Config:
    """A config of training and validation on ``boxes.json``, whose model is none."""
    metric = dict(type="CocoMetric", ann_file=str(root / "boxes.json"), metric=["bbox", "segm"] if masks else "bbox")
    return Config(
        dict(
            default_scope="mmdet",
            model=dict(type="NoSuchModel", bbox_head=dict(num_classes=len(CLASSES))),
            train_dataloader=dict(dataset=dataset(root, masks, **arguments)),
            val_dataloader=dict(dataset=dataset(root, test_mode=True, **arguments)),
            val_evaluator={**metric, **(evaluator or {})},
        )
    )


def write(root: Path, annotations: Any) -> Path:
    path = root / "boxes.json"
    path.write_text(annotations if isinstance(annotations, str) else json.dumps(annotations))
    return path


def perfect_detector(truth: Any, classes: tuple[str, ...] = CLASSES, masks: bool = False) -> list[dict[str, Any]]:
    """What a detector that finds every object gives to mmdet's metrics, by a pycocotools ``COCO``."""
    import torch

    labels = {category["id"]: classes.index(category["name"]) for category in truth.dataset["categories"]}
    samples = []
    for key in truth.imgs:
        objects = [each for each in truth.imgToAnns[key] if each["category_id"] in labels and not each["iscrowd"]]
        boxes = torch.tensor([each["bbox"] for each in objects], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        found = dict(
            bboxes=boxes,
            labels=torch.tensor([labels[each["category_id"]] for each in objects], dtype=torch.long),
            scores=torch.ones(len(objects)),
        )
        if masks:
            drawn = [torch.from_numpy(truth.annToMask(each)) for each in objects]
            found["masks"] = torch.stack(drawn).bool() if drawn else torch.zeros(0, HEIGHT, WIDTH).bool()
        samples.append(dict(img_id=key, ori_shape=(HEIGHT, WIDTH), pred_instances=found))
    return samples
