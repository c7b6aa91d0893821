"""COCO metrics measure every annotation, whatever its id is."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from helpers import coco

pytest.importorskip("mmdet")

from mmdet.evaluation import CocoMetric
from mmengine.config import Config
from mmengine.evaluator import Evaluator

from mm_vitbackbones import libraries
from mm_vitbackbones.engine.console import Console
from mm_vitbackbones.engine.ground_truth import AnnotationIdsHook, renumber

pytestmark = pytest.mark.mmdet


def write(folder: Path, ids: Any) -> Path:
    content = coco.content()
    for annotation, key in zip(content["annotations"], ids, strict=True):
        annotation["id"] = key
    return coco.write(folder, content)


def metric(path: Path, kind: str) -> CocoMetric:
    made = CocoMetric(str(path), metric=kind, iou_thrs=np.array([0.5]))
    made.dataset_meta = dict(classes=coco.CLASSES)
    return made


def precision(metric: CocoMetric, kind: str) -> float:
    found = coco.perfect_detector(metric._coco_api, masks=kind == "segm")
    metric.process({}, found)
    return metric.evaluate(len(found))[f"coco/{kind}_mAP"]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_a_perfect_detector_has_an_ap_of_1_with_ids_from_0(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, split: str
) -> None:
    path = write(tmp_path, range(9))
    before = path.read_bytes()
    assert precision(metric(path, kind), kind) < 1  # of pycocotools alone
    metrics = [metric(path, kind), metric(path, kind)]
    evaluator = Evaluator([*metrics])
    runner = SimpleNamespace(logger=logging.getLogger("run"), **{f"{split}_evaluator": evaluator})
    with caplog.at_level(logging.INFO):
        getattr(AnnotationIdsHook(), f"before_{split}")(runner)
        getattr(AnnotationIdsHook(), f"before_{split}")(runner)
    assert [precision(each, kind) for each in metrics] == [1, 1]
    assert [record.message for record in caplog.records if "renumbered from 1" in record.message] == [
        "annotation ids of CocoMetric are renumbered from 1 in memory, as pycocotools takes 0 for no match; the file "
        "is as it was"
    ] * 2
    assert path.read_bytes() == before


def test_ids_that_are_no_numbers_are_renumbered_and_others_stay(tmp_path: Path) -> None:
    made = metric(write(tmp_path, "abcdefghi"), "bbox")
    assert renumber(made._coco_api) == "pycocotools cannot store 'a'"
    assert precision(made, "bbox") == 1
    made = metric(write(tmp_path, range(5, 14)), "bbox")
    assert renumber(made._coco_api) == ""
    assert [*made._coco_api.anns] == [*range(5, 14)]


def test_other_metrics_are_left_alone() -> None:
    panoptic = SimpleNamespace(_coco_api=SimpleNamespace(anns={0: [{"id": 0}]}))  # an id has several segments
    converted = CocoMetric()  # makes its file from the data set's annotations, with ids from 1
    runner = SimpleNamespace(val_evaluator=SimpleNamespace(metrics=[panoptic, converted, object()]))
    AnnotationIdsHook().before_val(runner)
    assert panoptic._coco_api.anns == {0: [{"id": 0}]}


def test_runs_of_the_tools_have_the_hook() -> None:
    class Runner:
        def __init__(self) -> None:
            self.hooks: list[Any] = []

        @classmethod
        def from_cfg(cls, cfg: Config) -> Runner:
            return cls()

        def register_hook(self, hook: Any) -> None:
            self.hooks.append(type(hook))

    libraries.use("mmdet")
    assert AnnotationIdsHook in Console(verbose=True).runner(Config(), Runner).hooks
