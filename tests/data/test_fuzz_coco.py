"""Files that are wrong in 250 ways: each is refused in one message, or trained and measured by without a loss."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import coco
from helpers.broken_files import change_values
from helpers.paths import CONFIGS
from helpers.runs import write_config
from helpers.toys import TOYS

pytest.importorskip("mmdet")

from mmengine.registry import DATASETS

from mm_vitbackbones import libraries
from mm_vitbackbones.cli import datasets, preflight
from mm_vitbackbones.engine.ground_truth import renumber
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.nodes import heads

pytestmark = pytest.mark.mmdet

CASES, GROUPS = 250, 5

VALUES = (None, "", "abc", "7", 0, -1, 1.5, 7, True, False, float("nan"), float("inf"), 1e30, [], [1, 2, 3], {}, [[5]])
"""What a value is replaced by."""


@pytest.fixture(autouse=True)
def mmdet() -> None:
    libraries.use("mmdet")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    coco.write_images(folder)
    return folder


def write_case(root: Path, case: int) -> str:
    """Write the file of a case, and say what is wrong with it."""
    rng = np.random.default_rng(case)
    content = coco.content()
    ways = [change_values(content, rng, VALUES) for _ in range(1 + case % 3 // 2)]
    text = json.dumps(content)
    coco.write(root, text[: rng.integers(len(text))] if case % 50 == 0 else text)
    return "; ".join(ways)


@pytest.mark.parametrize("group", range(GROUPS))
def test_a_mutated_file_is_refused_in_one_message_or_read_without_loss(root: Path, group: int) -> None:
    passed = 0
    for case in range(group, CASES, GROUPS):
        ways, masks = write_case(root, case), case % 2 == 0
        try:
            passed += check(root, masks)
        except Exception as error:
            error.add_note(f"case {case}, masks={masks}: {ways}")
            raise
    assert CASES / GROUPS / 10 < passed < CASES / GROUPS / 2


@pytest.mark.parametrize("masks", [False, True])
def test_what_passes_is_trained_with_a_finite_loss(root: Path, masks: bool) -> None:
    from mmdet.registry import MODELS
    from mmengine.config import Config
    from mmengine.dataset import pseudo_collate

    if masks:
        cfg = Config.fromfile(CONFIGS / "mask_rcnn_swin_t_mini.py").model
        cfg.backbone.arch = TOYS["swin"].arch
        cfg.neck.in_channels = [*TOYS["swin"].arch["dims"]]
    else:
        cfg = Config.fromfile(write_config("tiny_detector", root, root)).model
    for _, head in heads(cfg):
        head["num_classes"] = len(coco.CLASSES)
    model = MODELS.build(cfg)
    found = 0
    for case in itertools.count(1000):
        write_case(root, case)
        data = coco.config(root, masks).train_dataloader.dataset
        if refusal(coco.config(root, masks)) is None:
            built = DATASETS.build(data)
            batch = model.data_preprocessor(pseudo_collate([*built]), training=True)
            loss, _ = model.parse_losses(model(**batch, mode="loss"))
            assert loss.isfinite()
            found += 1
        if found == 4:
            break


def check(root: Path, masks: bool) -> bool:
    """Whether the file passes; if so, all of it is read."""
    cfg = coco.config(root, masks)
    message = refusal(cfg)
    if message is not None:
        assert 1 <= len(message.splitlines()) <= 2
        assert "Error:" not in message or "cannot be read (JSONDecodeError" in message
        return False
    dataset = cfg.train_dataloader.dataset
    summary = datasets.check_annotations(dataset, coco.CLASSES, "train_dataloader", seen=True)
    assert summary is not None
    built = DATASETS.build(dataset)
    samples = [built[index]["data_samples"] for index in range(len(built))]
    trained = sum(len(sample.gt_instances) for sample in samples)
    from pycocotools.coco import COCO

    truth = COCO(root / "boxes.json")
    assert trained == len(truth.anns) - sum(summary.dropped.values()) == summary.kept
    for sample in samples:
        assert sample.gt_instances.bboxes.tensor.isfinite().all()
        assert (sample.gt_instances.labels < len(coco.CLASSES)).all()
        if masks:
            drawn = sample.gt_instances.masks
            assert set(np.unique(drawn.masks)) <= {0, 1}
    measure(cfg.val_evaluator, truth, masks)
    return True


def refusal(cfg: Any) -> str | None:
    try:
        preflight.check(cfg, ["train", "val"], every=True)
    except UserError as error:
        return str(error)
    return None


def measure(evaluator: dict[str, Any], truth: Any, masks: bool) -> None:
    """A detector that finds every object has an AP of 1."""
    from mmdet.evaluation import CocoMetric

    boxes = np.array([each["bbox"] for key in truth.imgs for each in truth.imgToAnns[key]], float)
    if boxes.max() > 1e6 or boxes[:, 2:].min() <= 0:
        return  # no overlap with such a box is 1
    metric = CocoMetric(**{key: value for key, value in evaluator.items() if key != "type"}, iou_thrs=np.array([0.5]))
    metric.dataset_meta = dict(classes=coco.CLASSES)
    renumber(metric._coco_api)
    found = coco.perfect_detector(truth, masks=masks)
    metric.process({}, found)
    results = metric.evaluate(len(found))
    assert {results[f"coco/{kind}_mAP"] for kind in (["bbox", "segm"] if masks else ["bbox"])} == {1.0}
