"""Configs in MMEngine's Python style, what a run writes of them, JSON and YAML: every tool takes them."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

from helpers.runs import write_config

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mmdet.datasets.transforms import Resize
from mmdet.evaluation import CocoMetric
from mmengine.optim import OptimWrapper

from mm_vitbackbones.backbones import PVT
from mm_vitbackbones.checkpoints.initialiser import Pretrained
from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.cli.config import load_config, use_local_norms
from mm_vitbackbones.cli.dry_run import image_size
from mm_vitbackbones.cli.model import build_model
from mm_vitbackbones.cli.predictions import dump_predictions
from mm_vitbackbones.cli.preflight import check_pretrained
from mm_vitbackbones.engine.amp import use_amp
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.libraries import scope_of
from mm_vitbackbones.nodes import is_pretrained, type_name

pytestmark = [pytest.mark.mmdet, pytest.mark.mmseg, pytest.mark.xdist_group("config_styles")]


def call(command: str, *arguments: Any) -> int:
    """A tool in this process, and its exit code. The libraries' warnings are no errors here, as for a user."""
    scopes = dict(DefaultScope._instance_dict)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return run(import_module(f"mm_vitbackbones.cli.{command}").main, [*map(str, arguments)])
        finally:
            for logger in [each for each in MMLogger._instance_dict.values() if isinstance(each, MMLogger)]:
                for handler in [each for each in logger.handlers if isinstance(each, logging.FileHandler)]:
                    logger.removeHandler(handler)
                    handler.close()
            DefaultScope._instance_dict.clear()
            DefaultScope._instance_dict.update(scopes)


def save_weights(cfg: Config, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    torch.save({"state_dict": build_model(cfg).state_dict()}, path)


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The configs, a detector's weights, and the work dir of a segmentor's training. It is the current folder."""
    path = tmp_path_factory.mktemp("styles")
    before = Path.cwd()
    os.chdir(path)
    for name in ("python_runtime", "python_detector", "python_segmentor", "tiny_detector", "tiny_segmentor"):
        write_config(name, data, path)
    save_weights(load_config(path / "python_detector.py", {}), path / "python_detector" / "epoch_1.pth")
    assert call("train", "python_segmentor.py", "--work-dir", path / "python_segmentor") == 0
    yield path
    os.chdir(before)


def checkpoint(folder: Path, name: str) -> Path:
    return next(iter(sorted(Path(folder, name).glob("*_*.pth"))))


@pytest.mark.parametrize("name", ["python_detector", "python_segmentor"])
@pytest.mark.parametrize("command", ["describe", "check_data", "dry_run"])
def test_tools_without_weights_take_types_that_are_classes(folder: Path, command: str, name: str) -> None:
    assert call(command, f"{name}.py") == 0


@pytest.mark.parametrize("name", ["python_detector", "python_segmentor"])
def test_prediction_takes_types_that_are_classes(folder: Path, data: Path, name: str) -> None:
    image = data / "images/smoke/smoke_0000.png"
    assert call("predict", f"{name}.py", checkpoint(folder, name), image, "--out", f"{name}_found") == 0
    assert Path(f"{name}_found/smoke_0000.png").is_file()


def test_a_test_takes_types_that_are_classes(folder: Path) -> None:
    weights = checkpoint(folder, "python_detector")
    assert call("test", "python_detector.py", weights, "--out", "boxes.json", "--show-dir", "shown", "--tta") == 0
    assert json.loads(Path("boxes.json").read_text())[0]["bbox"]
    assert len([*Path("shown").glob("*.png")]) == 16
    cfg = load_config(folder / "python_segmentor.py", {})
    dump_predictions(cfg, folder / "maps.pkl", folder)
    assert [type_name(evaluator) for evaluator in cfg.test_evaluator] == ["IoUMetric", "DumpLabelMaps"]


def test_training_goes_on_in_bf16_with_types_that_are_classes(folder: Path) -> None:
    cfg = load_config(folder / "python_segmentor.py", {})
    use_amp(cfg, "bf16")
    assert cfg.optim_wrapper.type == "BFloat16OptimWrapper"
    more = ["--amp", "bf16", "--cfg-options", "train_cfg.max_iters=3", "train_cfg.val_interval=5"]
    assert call("train", "python_segmentor.py", "--resume", "--work-dir", "python_segmentor", *more) == 0
    assert Path("python_segmentor", "iter_3.pth").is_file()


def test_the_config_that_a_run_wrote_is_taken(folder: Path, data: Path) -> None:
    written = folder / "written.py"
    load_config(folder / "python_detector.py", {}).dump(written)
    assert "<class" not in written.read_text()
    weights, image = checkpoint(folder, "python_detector"), data / "images/smoke/smoke_0000.png"
    assert call("describe", written) == 0
    assert call("predict", written, weights, image, "--out", "of_written") == 0
    # mmcv looks for the function among its own names.
    cfg = load_config(written, {})
    assert cfg.model.test_cfg.nms.type == cfg.tta_model.tta_cfg.nms.type == "nms"


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
@pytest.mark.parametrize("name", ["tiny_detector", "tiny_segmentor"])
def test_json_and_yaml_are_taken(folder: Path, data: Path, name: str, suffix: str) -> None:
    path, image = folder / f"{name}{suffix}", data / "images/smoke/smoke_0000.png"
    Config.fromfile(f"{name}.py").dump(path)
    cfg = load_config(path, {})
    steps = [step for step in cfg.train_pipeline if "scale" in step]
    assert steps
    assert all(isinstance(step.scale, tuple) for step in steps)
    save_weights(cfg, path.with_suffix(".pth"))
    assert call("predict", path, path.with_suffix(".pth"), image, "--out", f"{name}_{suffix[1:]}") == 0


def test_the_scope_of_a_python_style_config_is_the_library_of_its_classes(folder: Path) -> None:
    # The libraries build parts of their own by short names, which only their own scope has.
    assert load_config(folder / "python_detector.py", {}).default_scope == "mmdet"
    assert scope_of(Config.fromfile("python_segmentor.py")) == "mmseg"
    assert scope_of(Config(dict(model=dict(type=PVT)))) == "mmengine"
    assert scope_of(Config(dict(default_scope="mmseg", model=dict(type="mmdet.RetinaNet")))) == "mmseg"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("RetinaHead, RetinaNet", "RetinaHead, RetinaNe as RetinaNet", "Failed to import RetinaNe from mmdet.models"),
        (".python_runtime", ".python_runtme", "python_runtme.py not found"),
        ("import PVT", "import PTV as PVT", "Failed to import PTV from mm_vitbackbones.backbones"),
    ],
)
def test_a_class_or_a_base_that_is_not_there_is_one_line(folder: Path, old: str, new: str, message: str) -> None:
    path = folder / "wrong.py"
    path.write_text((folder / "python_detector.py").read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        load_config(path, {})


@pytest.mark.parametrize(
    ("norm", "wrapper", "metric", "resize"),
    [
        ("SyncBN", "OptimWrapper", "CocoMetric", "Resize"),
        ("mmcv.SyncBN", "mmengine.OptimWrapper", "mmdet.CocoMetric", "mmdet.Resize"),
        (torch.nn.SyncBatchNorm, OptimWrapper, CocoMetric, Resize),
    ],
)
def test_what_tools_look_for_is_found_by_name_scope_and_class(
    tmp_path: Path, norm: Any, wrapper: Any, metric: Any, resize: Any
) -> None:
    cfg = Config(
        dict(
            default_scope="mmdet",
            model=dict(bbox_head=dict(norm_cfg=dict(type=norm))),
            optim_wrapper=dict(type=wrapper, optimizer=dict(type="AdamW")),
            test_evaluator=dict(type=metric),
            test_dataloader=dict(dataset=dict(pipeline=[dict(type=resize, scale=(64, 32))])),
        )
    )
    use_local_norms(cfg, distributed=False)
    assert cfg.model.bbox_head.norm_cfg.type == "BN"
    use_amp(cfg, "bf16")
    assert cfg.optim_wrapper.type == "BFloat16OptimWrapper"
    dump_predictions(cfg, tmp_path / "out.json", tmp_path)
    assert cfg.test_evaluator.outfile_prefix == str(tmp_path / "predictions")
    assert image_size(cfg) == (32, 64)


def test_names_and_classes_are_the_same_type() -> None:
    from mmengine.model import PretrainedInit

    assert {type_name(kind) for kind in ("PVT", "mm_vitbackbones.PVT", "mm_vitbackbones.backbones.PVT", PVT)} == {"PVT"}
    assert type_name({"type": PVT}) == "PVT"
    assert type_name({}) == type_name(None) == ""
    for kind in ("Pretrained", "mm_vitbackbones.Pretrained", Pretrained, PretrainedInit):
        assert is_pretrained(dict(type=kind))
        config = dict(type=PVT, arch="tiny", init_cfg=dict(type=kind, checkpoint="no_such.pth"))
        with pytest.raises(UserError, match=r"init_cfg\.checkpoint: no file no_such\.pth"):
            check_pretrained({"backbone": config})
    assert not is_pretrained(dict(type="Constant"))
    assert not is_pretrained(None)
