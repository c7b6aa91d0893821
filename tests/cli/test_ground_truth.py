"""The tools on COCO-format files: results without annotations, ids from 0, and what is refused."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

from helpers import coco
from helpers.runs import write_config

pytest.importorskip("mmdet")

from mm_vitbackbones.cli import check_data, test
from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.cli.config import load_config
from mm_vitbackbones.cli.model import build_model

pytestmark = pytest.mark.mmdet

Tool = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config and a checkpoint of a tiny detector, and images."""
    folder = tmp_path_factory.mktemp("files")
    coco.write_images(folder)
    config = write_config("tiny_detector", folder, folder)
    loaders = f"""
dataset = dict(
    type="CocoDataset", data_root="{folder}", ann_file="boxes.json", data_prefix=dict(img="images"),
    metainfo=dict(classes={coco.CLASSES}), test_mode=True, pipeline=[
        dict(type="LoadImageFromFile"),
        dict(type="Resize", scale=(32, 32), keep_ratio=True),
        dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
    ],
)
train_dataloader = val_dataloader = train_cfg = val_cfg = val_evaluator = None
optim_wrapper = None
test_dataloader["dataset"] = dataset
test_evaluator = dict(type="CocoMetric", ann_file="{folder}/boxes.json")
model["bbox_head"]["num_classes"] = 2
model["test_cfg"] = dict(score_thr=0.0)
"""
    config.write_text(config.read_text() + loaders)
    weights = build_model(load_config(config, {})).state_dict()
    torch.save({"state_dict": weights, "meta": {}}, folder / "tiny.pth")
    return folder


@pytest.fixture
def tool(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Tool]:
    """Run a tool on an annotation file, in a folder of its own: its exit code, output and errors."""
    loggers: OrderedDict[str, MMLogger] = OrderedDict()
    monkeypatch.setattr(MMLogger, "_instance_dict", loggers)
    monkeypatch.setattr(DefaultScope, "_instance_dict", OrderedDict())
    monkeypatch.chdir(tmp_path)

    def call(main: Callable[[list[str]], None], content: Any, *arguments: Any) -> tuple[int, str, str]:
        coco.write(files, content)
        begin = [files / "tiny_detector.py", *([files / "tiny.pth"] if main is test.main else [])]
        code = run(main, [str(argument) for argument in [*begin, *arguments]])
        return code, *capsys.readouterr()

    yield call
    for logger in loggers.values():
        for handler in logger.handlers:
            handler.close()


def test_a_set_without_annotations_is_predicted(tool: Tool, tmp_path: Path) -> None:
    content = coco.content()
    del content["annotations"]
    code, _, errors = tool(test.main, content)
    assert (code, errors.count("\n")) == (2, 1)
    assert "to predict alone, set format_only=True of the CocoMetric" in errors
    code, _, errors = tool(test.main, content, "--cfg-options", "test_evaluator.format_only=True")
    assert (code, errors.count("\n")) == (2, 1)
    assert "say where by its outfile_prefix, or give --out FILE.json" in errors
    code, shown, _ = tool(
        test.main, content, "--cfg-options", "test_evaluator.format_only=True", "--out", tmp_path / "found.json"
    )
    assert code == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert {box["image_id"] for box in found} == {0, 1, 2}
    assert {box["category_id"] for box in found} <= {7, 9}
    assert "boxes.json: 3 of 3 images, 0 of 0 annotations" in shown


def test_the_log_says_that_ids_are_renumbered(tool: Tool) -> None:
    content = coco.content()
    for annotation in content["annotations"]:
        annotation["id"] -= 1
    code, shown, _ = tool(test.main, content)
    assert code == 0
    assert shown.count("annotation ids of CocoMetric are renumbered from 1 in memory") == 1


@pytest.mark.parametrize("main", [test.main, check_data.main])
def test_a_fault_ends_in_one_line_and_exit_code_2(tool: Tool, main: Callable[[list[str]], None]) -> None:
    content = coco.content()
    del content["annotations"][4]["area"]
    code, _, errors = tool(main, content)
    assert (code, errors.count("\n")) == (2, 1)
    assert "1 annotation without area (id 5; mmdet's CocoDataset reads square pixels" in errors
