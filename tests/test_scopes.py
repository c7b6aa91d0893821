"""Every public entry works whatever the default scope is: a library's, or one that nobody knows."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import mm_vitbackbones
from helpers.toys import BY_FAMILY, TOYS
from mm_vitbackbones import libraries
from mm_vitbackbones.backbones import PVT, Backbone, PVTv2
from mm_vitbackbones.build import backbone_names, families
from mm_vitbackbones.checkpoints import convert_checkpoint, layout_of, load_pretrained
from mm_vitbackbones.cli.describe import describe
from mm_vitbackbones.errors import UserError

SCOPES = [None, "mmdet", "mmseg", "no_such_library"]


@pytest.fixture(params=SCOPES, ids=str)
def scope(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """The default scope, as ``init_detector`` leaves it for the whole process."""
    if request.param in ("mmdet", "mmseg"):
        pytest.importorskip(request.param)
    with DefaultScope.overwrite_default_scope(request.param):
        yield request.param


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What is logged as a warning."""
    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler, logger = Keep(logging.WARNING), MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "pvt_v2_b0.pth"
    torch.save(mm_vitbackbones.build_backbone("pvt_v2_b0").state_dict(), path)
    return path


def test_backbones_are_built_loaded_and_described(scope: str | None, weights: Path, said: list[str]) -> None:
    backbone = mm_vitbackbones.build_backbone("pvt_v2_b0", pretrained=weights, out_indices=(3,))
    assert isinstance(backbone, PVTv2)
    assert load_pretrained(backbone, weights).layout == "ours"
    PVTv2("b0", init_cfg=dict(type="Pretrained", checkpoint=str(weights))).init_weights()
    assert layout_of(backbone, torch.load(weights)) == "ours"
    for kind in ("PVTv2", "mm_vitbackbones.PVTv2", PVTv2):
        found = describe(dict(type=kind, arch=TOYS["pvt_v2"].arch), (64, 64))
        assert found.name.rpartition(".")[2] == "PVTv2"
    assert not said


def test_files_are_converted(scope: str | None, weights: Path, tmp_path: Path, said: list[str]) -> None:
    assert convert_checkpoint(weights, tmp_path / "official.pth", "official").family == "PVTv2"
    assert not said


def test_configs_name_them_and_recipes_are_found(scope: str | None) -> None:
    toy = TOYS["pvt"]
    for kind in ("mm_vitbackbones.PVT", PVT):
        backbone = MODELS.build(dict(type=kind, arch=toy.arch, init_cfg=[dict(type="mm_vitbackbones.FromScratch")]))
        backbone.init_weights()
        assert isinstance(backbone, Backbone)
    assert Path(mm_vitbackbones.recipe("retinanet_pvt_t_mini")).is_file()
    assert families().keys() == {family.__name__ for family, _ in backbone_names().values()} == BY_FAMILY.keys()


@pytest.mark.mmdet
def test_models_are_tried_and_predict(scope: str | None, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("mmdet")
    from helpers.runs import write_config
    from mm_vitbackbones.cli.config import load_config
    from mm_vitbackbones.cli.dry_run import try_config
    from mm_vitbackbones.cli.predict import Predictor, inference_steps

    path = write_config("tiny_detector", data, tmp_path)
    cfg = load_config(path, {})
    assert "loss" in try_config(cfg, (64, 64), 1).losses
    from mm_vitbackbones.cli.model import build_model

    model: nn.Module = build_model(cfg)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pth")
    cfg = load_config(path, {})
    predictor = Predictor(cfg, inference_steps(cfg), tmp_path / "weights.pth", "cpu")
    _, inputs = predictor.load(data / "images/smoke/smoke_0000.png", 0)
    assert "pred_instances" in predictor(inputs)
    current = DefaultScope.get_current_instance()
    assert scope is None or current.scope_name == scope


def test_library_over_the_folder_that_an_uninstalled_mmcv_left_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "mmcv_left").mkdir()
    (tmp_path / "library_of_mmcv.py").write_text("import mmcv_left\nassert mmcv_left.__version__\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"needs library_of_mmcv.*__version__.*mm_vitbackbones doctor"):
        libraries.load("library_of_mmcv")
