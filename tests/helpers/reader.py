"""What a reader of the documentation has: small data in the folders that the pages name, and downloaded weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import DefaultScope
from PIL import Image, ImageDraw

from helpers.recipes import load
from helpers.sources import write_text
from mm_vitbackbones.build import backbone_names, build_backbone
from mm_vitbackbones.checkpoints import published
from mm_vitbackbones.checkpoints.record import file_name_of
from mm_vitbackbones.cli.model import build_model

WIDTH, HEIGHT = 96, 64
CLASSES = ("cat", "dog")


def write_data(root: Path) -> None:
    """The data that the pages speak of, a few images each."""
    write_yolo(root / "exported")
    write_labelme(root / "outlines")
    write_colours(root / "masked")
    for i in range(2):
        _scene(i, root / f"photos/{i}.jpg")
    _scene(0, root / "photo.jpg")
    write_mine(root / "data/mine")
    write_coco(root / "data/coco")
    write_ade(root / "data/ade/ADEChallengeData2016")


def write_weights(hub: Path, here: Path) -> None:
    """Random weights as if they were downloaded: of the networks that the pages train, in PyTorch's cache
    (``TORCH_HOME``), and of PVTv2-B0 by hand, too. Those of a training with an adapter."""
    for name in ("pvt_small", "pvt_v2_b0"):
        family, arch = backbone_names()[name]
        with DefaultScope.overwrite_default_scope(None):
            state = build_backbone(name).state_dict()
        url = str(published.resolve("imagenet1k", family.__name__, arch))
        path = downloaded(url, hub)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path)
    (here / file_name_of(url)).symlink_to(path)
    adapted = {"lora_alpha": torch.tensor(16.0)}
    for key in ("weight", "lora_A.weight", "lora_B.weight"):
        adapted[f"stages.0.blocks.0.attn.q.{key}"] = torch.zeros(32, 32)
    state = {f"backbone.{key}": tensor for key, tensor in (state | adapted).items()}
    torch.save({"state_dict": state}, here / "adapted.pth")


def write_checkpoints(here: Path) -> None:
    """Random weights as if both trainings of the demo had ended."""
    torch.manual_seed(0)
    for recipe, file in (
        ("retinanet_pvt_v2_b0_trees", "trees/epoch_12.pth"),
        ("segformer_mit_b0_mini", "mini/iter_2200.pth"),
    ):
        path = here / "work_dirs" / file
        path.parent.mkdir(parents=True)
        torch.save({"state_dict": build_model(load(recipe)).state_dict()}, path)


def downloaded(url: str, hub: Path) -> Path:
    """Where the file of an address is kept, if ``TORCH_HOME`` is this folder."""
    return hub / "hub/checkpoints" / f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{file_name_of(url)}"


def _box(seed: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the object of an image."""
    rng = np.random.default_rng(seed)
    left, top = int(rng.integers(2, 30)), int(rng.integers(2, 15))
    return left, top, left + int(rng.integers(30, 60)), top + int(rng.integers(25, 45))


def _scene(seed: int, path: Path) -> Path:
    """An image with one object, whose colour is its class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(60, 120, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    ImageDraw.Draw(image).rectangle(_box(seed), fill=[(220, 40, 40), (40, 200, 60)][seed % 2])
    image.save(path)
    return path


def _labels(seed: int) -> np.ndarray:
    left, top, right, bottom = _box(seed)
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[top : bottom + 1, left : right + 1] = 1
    return labels


def write_yolo(root: Path, count: int = 6) -> None:
    for i in range(count):
        _scene(i, root / f"images/{i}.jpg")
        left, top, right, bottom = _box(i)
        box = ((left + right) / 2 / WIDTH, (top + bottom) / 2 / HEIGHT, (right - left) / WIDTH, (bottom - top) / HEIGHT)
        write_text(root / f"labels/{i}.txt", f"{i % 2} {' '.join(f'{x:.4f}' for x in box)}\n")
    write_text(root / "data.yaml", f"names: [{', '.join(CLASSES)}]\n")


def write_labelme(root: Path, count: int = 6) -> None:
    for i in range(count):
        _scene(i, root / f"{i}.jpg")
        left, top, right, bottom = _box(i)
        points = [[left, top], [right, top], [right, bottom], [left, bottom]]
        shape = dict(label=CLASSES[i % 2], points=points, shape_type="polygon", group_id=None, flags={})
        content = dict(version="5.4.1", flags={}, shapes=[shape], imagePath=f"{i}.jpg", imageData=None)
        write_text(root / f"{i}.json", json.dumps(dict(content, imageHeight=HEIGHT, imageWidth=WIDTH)))


def write_colours(root: Path, count: int = 6) -> None:
    """CVAT's "Segmentation mask 1.1"."""
    colours = np.array([(0, 0, 0), (128, 0, 0)], np.uint8)
    for i in range(count):
        _scene(i, root / f"JPEGImages/{i}.jpg")
        path = root / f"SegmentationClass/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colours[_labels(i)]).save(path)
    write_text(root / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\nthing:128,0,0::\n")
    write_text(root / "ImageSets/Segmentation/default.txt", "".join(f"{i}\n" for i in range(count)))


def _objects(names: list[str], classes: tuple[str, ...]) -> str:
    tables: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    for i, name in enumerate(names):
        left, top, right, bottom = _box(i)
        box = dict(bbox=[left, top, right - left, bottom - top], area=(right - left) * (bottom - top), iscrowd=0)
        tables["images"].append(dict(id=i, file_name=name, width=WIDTH, height=HEIGHT))
        tables["annotations"].append(dict(box, id=i + 1, image_id=i, category_id=1 + i % 2))
    return json.dumps(dict(tables, categories=[dict(id=i + 1, name=name) for i, name in enumerate(classes)]))


def write_mine(root: Path) -> None:
    """Objects in COCO's format, and masks of two classes; of each image three channels and six."""
    for i in range(2):
        six = np.random.default_rng(i).normal(1000, 300, (HEIGHT, WIDTH, 6)).astype(np.float32)
        for folder in ("images", "images/train", "images/val"):
            _scene(i, root / f"{folder}/{i}.jpg")
            np.save(root / f"{folder}/{i}.npy", six)
        for split in ("train", "val"):
            path = root / f"masks/{split}/{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(_labels(i)).save(path)
    for name, suffix in (("train", "jpg"), ("val", "jpg"), ("bands", "npy")):
        write_text(root / f"{name}.json", _objects([f"{i}.{suffix}" for i in range(2)], CLASSES))


def write_coco(root: Path) -> None:
    """In COCO 2017's folders, under its 80 names."""
    from mmdet.datasets import CocoDataset

    for split, count in (("train2017", 2), ("val2017", 1)):
        names = [f"{i:012}.jpg" for i in range(count)]
        for i, name in enumerate(names):
            _scene(i, root / split / name)
        write_text(root / f"annotations/instances_{split}.json", _objects(names, CocoDataset.METAINFO["classes"]))


def write_ade(root: Path) -> None:
    """In ADE20K's folders: 0 is ignored, and 1 is the first class."""
    for split, count in (("training", 2), ("validation", 1)):
        for i in range(count):
            _scene(i, root / f"images/{split}/{i}.jpg")
            path = root / f"annotations/{split}/{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(_labels(i) + 1).save(path)
