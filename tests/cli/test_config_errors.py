"""What is wrong with a config itself ends in one line, whichever tool reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from helpers.runs import write_config

pytest.importorskip("mmdet")

from mm_vitbackbones.cli import dry_run, train
from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.cli.config import load_config, read_config
from mm_vitbackbones.cli.launch import registry_errors
from mm_vitbackbones.cli.preflight import check_pretrained
from mm_vitbackbones.errors import UserError

pytestmark = [pytest.mark.mmdet, pytest.mark.xdist_group("config_errors")]


@pytest.fixture(scope="module")
def base(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config("tiny_detector", data, tmp_path_factory.mktemp("config_errors"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model = 'x'", "model is of type str: write model=dict"),
        ("optim_wrapper = 'AdamW'", "optim_wrapper is of type str"),
        ("optim_wrapper = dict(optimizer=['AdamW'])", r"optim_wrapper\.optimizer is of type list"),
        ("optim_wrapper = dict(paramwise_cfg=dict(custom_keys=['norm']))", "custom_keys is of type list"),
        ("train_dataloader = dict(dataset=None)", "train_dataloader has no data set"),
        ("train_dataloader = [1]", "train_dataloader is of type list"),
        ("default_hooks = [1]", "default_hooks is of type list"),
    ],
)
def test_a_part_of_another_type_is_one_line(base: Path, tmp_path: Path, change: str, message: str) -> None:
    path = tmp_path / "config.py"
    path.write_text(base.read_text() + f"\n{change}\n")
    with pytest.raises(UserError, match=message):
        load_config(path, {})


def test_a_config_of_mmdetection_2_says_so(tmp_path: Path) -> None:
    path = tmp_path / "old.py"
    path.write_text("model = dict(type='RetinaNet')\ndata = dict(train=dict())\noptimizer = dict(type='SGD')\n")
    with pytest.raises(UserError, match=r"is written for MMDetection 2 .*: write train_dataloader"):
        load_config(path, {})
    read_config(path)  # for its backbone alone


@pytest.mark.parametrize(
    ("change", "key"),
    [("strategy = dict(type='FSDPStrategy')", "strategy"), ("runner_type = 'FlexibleRunner'", "runner_type")],
)
def test_a_training_by_another_runner_is_refused(base: Path, tmp_path: Path, change: str, key: str) -> None:
    path = tmp_path / "config.py"
    path.write_text(base.read_text() + f"\n{change}\n")
    with pytest.raises(UserError, match=f"^{key} is for another runner"):
        train.main([str(path), "--work-dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_config_may_name_the_runner_that_trains_it() -> None:
    train.check_runner(Config(dict(runner_type="Runner")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train_dataloader = None", "it needs train_dataloader"),
        ("optim_wrapper = None", "it needs optim_wrapper"),
        ("model = dict(pretrained='x.pth')", "use model.backbone.init_cfg=dict(type='Pretrained'"),
        ("model = dict(backbone=dict(pretrained='x.pth'))", "use init_cfg=dict(type='Pretrained', checkpoint='x.pth')"),
        ("model = dict(backbone=dict(init_cfg=['x.pth']))", "init_cfg=['x.pth']: give None, or dict("),
        ("model = dict(neck=dict(type='FPM'))", "type='FPM' is not a known model; did you mean"),
        ("model = dict(bbox_head=None)", "AttributeError in single_stage.py:"),
        ("model = dict(neck=dict(_delete_=True))", 'must contain the key "type"'),
        ("model = dict(bbox_head=dict(in_channels=17))", "does not run: RuntimeError in conv.py:"),
        ("optim_wrapper = dict(optimizer=dict(type='AdmW'))", "did you mean 'AdamW'"),
        ("model = dict(backbone=dict(in_channels=4))", "expected an image (B, 4, H, W), got (1, 3, 64, 64)"),
        (
            "optim_wrapper = dict(constructor='mm_vitbackbones.LayerDecayOptimWrapperConstructor')",
            "paramwise_cfg.layer_decay_rate=None: give a number above 0",
        ),
    ],
)
def test_what_cannot_be_tried_is_one_line(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, message: str
) -> None:
    path = tmp_path / "config.py"
    path.write_text(f"_base_ = {str(base)!r}\n{change}\n")
    with DefaultScope.overwrite_default_scope("mmengine"):
        assert run(dry_run.main, [str(path), "--size", "64", "--images", "1"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_what_a_class_of_the_users_own_raises_keeps_its_traceback() -> None:
    class Own:
        def __init__(self) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), registry_errors(Path("mine.py")):
        MODELS.build(dict(type=Own))
    with pytest.raises(ValueError, match="in the run"), registry_errors(Path("mine.py")):
        raise ValueError("in the run")


@pytest.mark.parametrize("kind", ["mm_vitbackbones.PVT", "ResNet"])
@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (["a.pth"], "init_cfg.checkpoint: checkpoint is a list of 1"),
        (3, "init_cfg.checkpoint: checkpoint is 3"),
        (".", "init_cfg.checkpoint: . is a folder"),
    ],
)
def test_a_checkpoint_that_is_no_file_is_named_before_training(kind: str, checkpoint: object, message: str) -> None:
    backbone = dict(type=kind, init_cfg=dict(type="Pretrained", checkpoint=checkpoint))
    with DefaultScope.overwrite_default_scope("mmdet"), pytest.raises(UserError) as caught:
        check_pretrained({"backbone": backbone})
    assert message in str(caught.value)
