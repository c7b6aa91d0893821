"""The smoke split of `mini` as MMDetection, MMSegmentation and COCO's own evaluation read it, and the data configs."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope

from helpers.paths import ROOT

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mm_vitbackbones.cli.datasets import datasets_of
from mm_vitbackbones.data import mini, trees

CONFIGS = ROOT / "configs/_base_/datasets"


@pytest.fixture
def scope(request: pytest.FixtureRequest) -> Iterator[None]:
    """The library that is named is the one whose transforms short type names mean."""
    importlib.import_module(f"{request.param}.utils").register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope(request.param):
        yield


@pytest.mark.mmdet
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")  # pycocotools
@pytest.mark.parametrize("scope", ["mmdet"], indirect=True)
def test_mmdet_reads_boxes_and_masks(data: Path, scope: None) -> None:
    from mmdet.datasets import CocoDataset

    dataset = CocoDataset(
        data_root=str(data),
        ann_file="annotations/instances_smoke.json",
        data_prefix={"img": "images/smoke/"},
        metainfo={"classes": mini.THINGS},
        test_mode=True,
        pipeline=[
            {"type": "LoadImageFromFile"},
            {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True},
            {"type": "PackDetInputs"},
        ],
    )
    assert len(dataset) == 16
    for index in range(16):
        sample, scene = dataset[index], mini.draw_scene("smoke", index)
        assert sample["inputs"].shape == (3, *scene.labels.shape)
        image = np.dstack([scene.image] * 3) if scene.image.ndim == 2 else scene.image[..., 2::-1]
        difference = np.abs(sample["inputs"].numpy().transpose(1, 2, 0).astype(int) - image)
        # Exact, except for the grayscale JPEG.
        assert difference.mean() < 3 if index % 50 in mini.GRAY else not difference.any()

        things, crowds = ([i for i in scene.instances if i.crowd is crowd] for crowd in (False, True))
        truth, ignored = sample["data_samples"].gt_instances, sample["data_samples"].ignored_instances
        for found, expected in ((truth, things), (ignored, crowds)):
            assert found.labels.tolist() == [instance.thing for instance in expected]
            corners = [[x, y, x + w, y + h] for x, y, w, h in (mini.to_box(instance.mask) for instance in expected)]
            assert found.bboxes.tensor.tolist() == corners
            for mask, instance in zip(found.masks.masks, expected, strict=True):
                np.testing.assert_array_equal(mask.astype(bool), instance.mask)


@pytest.mark.mmseg
@pytest.mark.parametrize("scope", ["mmseg"], indirect=True)
def test_mmseg_reads_images_and_masks(data: Path, scope: None) -> None:
    from mmseg.datasets import BaseSegDataset

    dataset = BaseSegDataset(
        data_root=str(data),
        data_prefix={"img_path": "images/smoke", "seg_map_path": "annotations/smoke"},
        img_suffix=".png",
        seg_map_suffix=".png",
        metainfo={"classes": mini.LABELS},
        reduce_zero_label=True,
        pipeline=[
            {"type": "LoadImageFromFile"},
            {"type": "LoadAnnotations", "reduce_zero_label": True},
            {"type": "PackSegInputs"},
        ],
    )
    assert len(dataset) == 16
    for index in range(16):
        sample, scene = dataset[index], mini.draw_scene("smoke", index)
        labels = sample["data_samples"].gt_sem_seg.data[0].numpy()
        assert sample["inputs"].shape == (3, *labels.shape)
        np.testing.assert_array_equal(labels, np.where(scene.labels == 0, 255, scene.labels - 1))


@pytest.mark.mmdet
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_ground_truth_scores_one(data: Path, kind: str) -> None:
    from pycocotools import mask as masks
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    path = data / "annotations/instances_smoke.json"
    perfect = []
    for annotation in json.loads(path.read_text())["annotations"]:
        if not annotation["iscrowd"]:
            rle = masks.frPyObjects(annotation["segmentation"], *annotation["segmentation"]["size"])
            assert masks.area(rle) == annotation["area"]
            what = {"bbox": annotation["bbox"]} if kind == "bbox" else {"segmentation": rle}
            keys = ("image_id", "category_id")
            perfect.append({**{key: annotation[key] for key in keys}, "score": 1.0, **what})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        evaluation = COCOeval(truth, truth.loadRes(perfect), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_configs_name_what_is_on_disk() -> None:
    names = {"mini": (mini.THINGS, mini.SPLITS), "trees": (("tree",), trees.SPLITS)}
    for name, (classes, splits) in names.items():
        cfg = Config.fromfile(CONFIGS / f"{name}_detection.py")
        for loader, split in (("train", "training"), ("val", "validation"), ("test", "validation")):
            (dataset,) = datasets_of(cfg[f"{loader}_dataloader"])  # out of RepeatDataset
            assert split in splits
            assert tuple(dataset.metainfo.classes) == tuple(classes)
            assert dataset.data_root == f"data/{name}/"
            assert dataset.ann_file == f"annotations/instances_{split}.json"
            assert dataset.data_prefix.img == f"images/{split}/"
            if loader != "train":
                assert cfg[f"{loader}_evaluator"].ann_file == dataset.data_root + dataset.ann_file


@pytest.mark.mmdet
@pytest.mark.parametrize("scope", ["mmdet"], indirect=True)
def test_mini_config_feeds_a_detector(data: Path, scope: None) -> None:
    from mmdet.registry import DATASETS

    cfg = Config.fromfile(CONFIGS / "mini_detection.py")
    dataset = cfg.train_dataloader.dataset
    dataset.update(
        data_root=str(data), ann_file="annotations/instances_smoke.json", data_prefix={"img": "images/smoke/"}
    )
    built = DATASETS.build(dataset)
    assert len(built) == 14  # of 16: two are without objects
    for sample in built:
        height, width = sample["inputs"].shape[1:]
        assert max(height, width) == 224
        assert len(sample["data_samples"].gt_instances) > 0


def test_files_have_the_format_of_their_suffix(data: Path) -> None:
    """The images are what their suffixes say."""
    for path in (data / "images/smoke").iterdir():
        magic = b"\x89PNG" if path.suffix == ".png" else b"\xff\xd8\xff"
        assert path.read_bytes().startswith(magic)
        assert cv2.imread(str(path)).shape[2] == 3
