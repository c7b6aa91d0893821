"""Images whose values make no sense for the network are reported before a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

from mm_vitbackbones.data import values
from mm_vitbackbones.data.values import WrongChannels, check_channels, strange_values
from mm_vitbackbones.errors import UserError

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
CAFFE = ([103.53, 116.28, 123.675], [1.0, 1.0, 1.0])
LOAD = dict(type="LoadImageFromFile")


def noise(high: float, kind: Any = np.uint8, low: float = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.uniform(low, high, (8, 8, 3)).astype(kind) for _ in range(2)]


@pytest.mark.parametrize(
    ("images", "normalisation", "words"),
    [
        (noise(16), IMAGENET, "nearly black"),  # 12 bits, of which OpenCV keeps the upper 8 of 16
        (noise(2), (None, None), "nearly black"),  # a mask in place of an image
        (noise(1, np.float32), IMAGENET, "hardly any difference"),
        (noise(4096, np.uint16), IMAGENET, "values around 35"),
        (noise(65536, np.uint16), IMAGENET, "values around"),
        (noise(256), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), "values around"),
        ([*noise(255, np.float32), np.full((8, 8, 3), np.nan, np.float32)], (None, None), "NaN"),
        ([np.resize(np.float32([np.inf, -np.inf, 1]), (8, 8, 3))], IMAGENET, "infinite value"),
        (noise(256), IMAGENET, None),
        (noise(256), CAFFE, None),
        (noise(60), CAFFE, None),  # dark, but as many other images
        (noise(256), ([0.0], [255.0]), None),
        (noise(256), ([0.0] * 3, [1.0] * 3), None),
        (noise(256, np.float32), IMAGENET, None),
        (noise(1, np.float32), (None, None), None),
        (noise(1, np.float32), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), None),
        (noise(2000, np.float32, -1000), ([0.0], [500.0]), None),
    ],
)
def test_values_that_make_no_sense_are_reported(images: Any, normalisation: Any, words: str | None) -> None:
    said = strange_values(images, *normalisation)
    assert (said is None) if words is None else words in (said or ""), said


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(values, "print_log", lambda line, **kwargs: lines.append(line))
    return lines


def folder_of(root: Path, image: Image.Image, task: str) -> dict[str, Any]:
    """A data set of three images, of detection or of segmentation."""
    for kind in ("images", "masks"):
        (root / kind).mkdir()
    for index in range(3):
        image.save(root / "images" / f"{index}.png", "TIFF" if image.mode == "F" else "PNG")
        Image.new("L", image.size).save(root / "masks" / f"{index}.png")
    if task == "mmseg":
        return dict(
            type="BaseSegDataset",
            data_root=str(root),
            data_prefix=dict(img_path="images", seg_map_path="masks"),
            img_suffix=".png",
            metainfo=dict(classes=("cat",)),
            pipeline=[LOAD, dict(type="LoadAnnotations"), dict(type="PackSegInputs")],
        )
    width, height = image.size
    content = {
        "images": [dict(id=i, file_name=f"{i}.png", width=width, height=height) for i in range(3)],
        "annotations": [dict(id=i + 1, image_id=i, category_id=1, bbox=[1, 1, 4, 4], area=16) for i in range(3)],
        "categories": [dict(id=1, name="cat")],
    }
    (root / "boxes.json").write_text(json.dumps(content))
    return dict(
        type="CocoDataset",
        ann_file="boxes.json",
        data_root=str(root),
        data_prefix=dict(img="images"),
        metainfo=dict(classes=("cat",)),
        pipeline=[LOAD, dict(type="LoadAnnotations", with_bbox=True), dict(type="PackDetInputs")],
    )


def check(dataset: dict[str, Any], task: str) -> None:
    with DefaultScope.overwrite_default_scope(task):
        values.check_values(dataset, dict(mean=IMAGENET[0], std=IMAGENET[1]), 3, "train_dataloader")


@pytest.mark.parametrize("task", ["mmdet", "mmseg"])
def test_images_of_12_bits_are_reported_as_the_loader_reads_them(task: str, tmp_path: Path, logged: list[str]) -> None:
    twelve_bits = Image.fromarray(np.random.default_rng(0).integers(0, 4096, (8, 8), dtype=np.uint16))
    dataset = folder_of(tmp_path, twelve_bits, task)
    check(dataset, task)
    assert logged[0].startswith("train_dataloader: of 3 images (uint8) that were looked at, the values are 0 to 1")
    assert "nearly black" in logged[0]


@pytest.mark.parametrize("task", ["mmdet", "mmseg"])
def test_image_that_the_loader_cannot_read_is_refused(task: str, tmp_path: Path, logged: list[str]) -> None:
    dataset = folder_of(
        tmp_path, Image.fromarray(np.ones((8, 8), np.float32)), task
    )  # Pillow reads it, OpenCV does not
    with pytest.raises(UserError, match=r"train_dataloader: .*images/0\.png cannot be loaded: failed to load image$"):
        check(dataset, task)
    pillow = dict(LOAD, imdecode_backend="pillow")
    check(dict(dataset, pipeline=[pillow, *dataset["pipeline"][1:]]), task)


def test_a_data_set_that_loads_without_a_pipeline_is_not_looked_at(tmp_path: Path) -> None:
    class Own(BaseDataset):
        def prepare_data(self, idx: int) -> Any:
            raise AssertionError

    DATASETS.register_module(module=Own, name="OwnOfTest", force=True)
    try:
        check(dict(type="OwnOfTest", ann_file="none.json"), "mmengine")
    finally:
        DATASETS.module_dict.pop("OwnOfTest")


@pytest.mark.parametrize(
    ("channels", "takes", "preprocessor", "words"),
    [
        (5, 3, {}, "images have 5 channels, and the backbone takes 3: set model.backbone.in_channels=5"),
        (1, 3, {}, "images have 1 channel, and the backbone takes 3"),
        (5, 5, dict(type="SegDataPreProcessor", mean=IMAGENET[0]), "mean 3 values, which do not fit: give 1 or 5"),
        (5, 5, dict(type="mmdet.DetDataPreprocessor", mean=[1] * 5), "mean 5 values, which do not fit: give 1, or"),
        (5, 5, dict(type="mmdet.DetDataPreprocessor", bgr_to_rgb=True), "takes three of them: set it to False"),
        (1, 1, dict(type="mmdet.DetDataPreprocessor", bgr_to_rgb=True), "takes three of them: set it to False"),
        (5, 5, dict(type="SegDataPreProcessor", mean=[1] * 5, std=[1] * 5, bgr_to_rgb=True), None),
        (5, 5, dict(type="mmdet.DetDataPreprocessor", mean=[1], std=[1]), None),
        (3, 3, dict(type="mmdet.DetDataPreprocessor", mean=IMAGENET[0], std=IMAGENET[1], bgr_to_rgb=True), None),
        (5, None, {}, None),
        (5, 3, dict(type=torch.nn.Identity, mean=IMAGENET[0]), None),  # of the user's own, which may choose bands
    ],
)
def test_channels_fit_the_model(channels: int, takes: int | None, preprocessor: dict[str, Any], words: str) -> None:
    inputs = {"inputs": torch.zeros(channels, 4, 6)}
    with DefaultScope.overwrite_default_scope("mmseg"):
        if words is None:
            check_channels(inputs, preprocessor, takes)
            return
        with pytest.raises(WrongChannels, match=words):
            check_channels(inputs, preprocessor, takes)
