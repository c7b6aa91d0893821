"""What a user changes in a config takes effect, or one line says where to change it."""

from __future__ import annotations

import copy
import importlib
import logging
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.logging import MMLogger

from helpers.paths import CONFIGS

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mm_vitbackbones.cli.config import load_config, read_config
from mm_vitbackbones.cli.keys import check_keys
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.nodes import heads

pytestmark = [pytest.mark.mmdet, pytest.mark.mmseg, pytest.mark.xdist_group("changes")]

DETECTOR, SEGMENTOR = "retinanet_pvt_s_coco", "upernet_swin_t_ade20k"


@pytest.fixture(scope="module")
def detector() -> Config:
    return read_config(CONFIGS / f"{DETECTOR}.py")


def mine(folder: Path, text: str, base: str = DETECTOR) -> Path:
    """A config of the user's own that inherits from a recipe."""
    path = folder / "mine.py"
    path.write_text(f"_base_ = {str(CONFIGS / base) + '.py'!r}\n{text}\n")
    return path


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- number of classes


@pytest.mark.parametrize(
    ("text", "base"),
    [
        ("model = dict(bbox_head=dict(num_classes=2))", DETECTOR),
        ("num_classes = 2\nmodel = dict(bbox_head=dict(num_classes=num_classes))", DETECTOR),
        ("model = dict(decode_head=dict(num_classes=2), auxiliary_head=dict(num_classes=2))", SEGMENTOR),
    ],
)
def test_the_number_of_classes_is_that_of_mmengine_alone(tmp_path: Path, text: str, base: str) -> None:
    path = mine(tmp_path, text, base)
    ours, plain = load_config(path, {}), Config.fromfile(path)
    for cfg in (ours, plain):
        assert {head["num_classes"] for _, head in heads(cfg.model)} == {2}


@pytest.mark.parametrize(("base", "names"), [(DETECTOR, ["bbox_head"]), (SEGMENTOR, ["decode_head", "auxiliary_head"])])
def test_a_number_of_classes_that_the_heads_have_not_names_both_places(
    tmp_path: Path, base: str, names: list[str]
) -> None:
    path = mine(tmp_path, "num_classes = 2", base)
    said = refusal(path)
    assert "num_classes=2 at the top of the config, but model." in said
    options = {f"model.{head}.num_classes": 2 for head in names}
    assert all(f"{option}=2" in said for option in options)
    load_config(path, options)  # the advice works
    assert "num_classes=3 at the top" in refusal(path, num_classes=3, **{f"model.{names[0]}.num_classes": 4})


# ---- variables that MMEngine has copied


def test_an_option_for_a_pipeline_reaches_every_data_set_that_has_it() -> None:
    cfg = load_config(
        CONFIGS / f"{DETECTOR}.py", {"train_pipeline.2.scale": (640, 400), "test_pipeline.1.scale": (9, 8)}
    )
    assert cfg.train_dataloader.dataset.pipeline[2].scale == (640, 400)
    assert cfg.val_dataloader.dataset.pipeline[1].scale == (9, 8)
    assert cfg.test_dataloader.dataset.pipeline[1].scale == (9, 8)


@pytest.mark.parametrize("base", [DETECTOR, SEGMENTOR])
def test_a_new_pipeline_in_a_config_reaches_the_data_set(tmp_path: Path, base: str) -> None:
    first = mine(tmp_path, "train_pipeline = [dict(type='LoadImageFromFile'), dict(type='RandomFlip')]", base)
    second = tmp_path / "second.py"
    second.write_text("_base_ = 'mine.py'\ntrain_cfg = dict(val_interval=2)\n")
    for path in (first, second):
        assert [step.type for step in load_config(path, {}).train_dataloader.dataset.pipeline] == [
            "LoadImageFromFile",
            "RandomFlip",
        ]


def test_a_pipeline_that_no_data_set_has_names_the_right_key(tmp_path: Path) -> None:
    path = mine(tmp_path, "train_pipeline = [dict(type='LoadImageFromFile')]", "mask_rcnn_swin_t_3x_coco")
    assert "train_dataloader=dict(dataset=dict(pipeline=train_pipeline))" in refusal(path)
    path = CONFIGS / "mask_rcnn_swin_t_3x_coco.py"
    assert "train_dataloader.dataset.pipeline" in refusal(path, **{"train_pipeline.0.type": "LoadBands"})
    assert "contrary" in refusal(
        CONFIGS / f"{DETECTOR}.py",
        **{"train_pipeline.2.scale": (64, 64), "train_dataloader.dataset.pipeline.2.scale": (32, 32)},
    )


@pytest.mark.parametrize(
    ("base", "option", "value", "key"),
    [
        (DETECTOR, "data_root", "data/mine/", "train_dataloader.dataset.data_root"),
        (SEGMENTOR, "crop_size", (256, 256), "train_dataloader.dataset.pipeline[3].crop_size"),
    ],
)
def test_an_option_for_a_copied_number_or_text_names_the_right_key(
    base: str, option: str, value: Any, key: str
) -> None:
    assert key in refusal(CONFIGS / f"{base}.py", **{option: value})


def test_a_new_value_that_changes_nothing_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = MMLogger.get_instance("changes")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.WARNING):
        load_config(mine(tmp_path, "data_root = 'data/mine/'"), {})
    assert "data_root='data/mine/' changes nothing" in caplog.text
    assert "train_dataloader.dataset.data_root" in caplog.text


# ---- misspelt keys


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("optim_wraper = dict(optimizer=dict(lr=1.0))", "'optim_wrapper'"),
        ("costum_hooks = [dict(type='EMAHook')]", "'custom_hooks'"),
        ("train_dataloder = dict(batch_size=1)", "'train_dataloader'"),
        ("train_cfg = dict(max_epoch=3)", "train_cfg.max_epochs"),
        ("train_dataloader = dict(batchsize=3)", "train_dataloader.batch_size"),
        ("train_dataloader = dict(dataset=dict(anno_file='a.json'))", "train_dataloader.dataset.ann_file"),
        ("train_dataloader = dict(dataset=dict(filter_cfg=dict(filter_empty=False)))", "filter_cfg.filter_empty_gt"),
        ("optim_wrapper = dict(clipgrad=dict(max_norm=1))", "optim_wrapper.clip_grad"),
        ("optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(x=dict(lr_mul=0.1))))", "custom_keys.x.lr_mult"),
        ("optim_wrapper = dict(paramwise_cfg=dict(norm_decay=0))", "paramwise_cfg.norm_decay_mult"),
        ("optim_wrapper = dict(accumulative_count=2)", "optim_wrapper.accumulative_counts"),
        ("default_hooks = dict(checkpont=dict(interval=5))", "default_hooks.checkpoint"),
        ("default_hooks = dict(checkpoint=dict(intervall=5))", "default_hooks.checkpoint.interval"),
        ("custom_hooks = [dict(type='EarlyStoppingHook', monitr='coco/bbox_mAP')]", "custom_hooks[0].monitor"),
        ("randomness = dict(sed=1)", "randomness.seed"),
        ("auto_scale_lr = dict(enabled=True)", "auto_scale_lr.enable"),
        ("model = dict(bbox_heads=dict(num_classes=2))", "model.bbox_head"),
        ("model = dict(test_cfg=dict(score_thresh=0.1))", "model.test_cfg.score_thr"),
        ("val_evaluator = dict(metrics='bbox')", "val_evaluator.metric"),
        ("param_scheduler = [dict(type='LinearLR', start_facter=0.1)]", "param_scheduler[0].start_factor"),
    ],
)
def test_a_misspelt_key_names_the_nearest_one(detector: Config, text: str, near: str) -> None:
    values: dict[str, Any] = {}
    exec(text, values)
    values.pop("__builtins__")
    cfg = Config(Config._merge_a_into_b(values, detector.to_dict()))
    with pytest.raises(UserError) as caught:
        check_keys(cfg, Path("mine.py"))
    assert str(caught.value).endswith(f"{near}?")
    check_keys(detector, Path("mine.py"))


@pytest.mark.parametrize(
    ("option", "near"),
    [
        ("optim_wraper.optimizer.lr", "optim_wrapper"),
        ("train_cfg.max_epoch", "train_cfg.max_epochs"),
        ("train_dataloader.batchsize", "train_dataloader.batch_size"),
        ("nothing_of_that_name", "nothing reads one"),
    ],
)
def test_a_misspelt_option_names_the_nearest_one(option: str, near: str) -> None:
    assert near in refusal(CONFIGS / f"{DETECTOR}.py", **{option: 1})


@pytest.mark.parametrize(
    "changes",
    [
        dict(train_datasets=[dict(type="CocoDataset")], my_value=3),
        dict(optim_wrapper=dict(type="AmpOptimWrapper", loss_scale="dynamic", accumulative_counts=2)),
        dict(custom_hooks=[dict(type="EMAHook", momentum=0.001, priority=49)]),
        dict(compile=True, find_unused_parameters=True, sync_bn=None),
        dict(optim_wraper=dict(lr=1), x=dict(lr=1)),  # a variable that another part uses
    ],
)
def test_a_right_key_passes(detector: Config, changes: dict[str, Any]) -> None:
    cfg = copy.deepcopy(detector)
    cfg.update(changes)
    check_keys(cfg, Path("mine.py"))


@pytest.mark.slow
@pytest.mark.parametrize("library", ["mmdet", "mmseg"])
def test_the_libraries_own_configs_pass(library: str) -> None:
    folder = Path(importlib.import_module(library).__file__ or "").parent / ".mim" / "configs"
    files = [file for file in sorted(folder.glob("*/*.py")) if file.parent.name != "_base_"]
    for file in random.Random(0).sample(files, 150):
        with suppress(UserError):
            read_config(file)  # some need a package that is not here
            try:
                load_config(file, {})
            except UserError as error:
                raise AssertionError(error) from None


# ---- hooks and logs


HOOKS = {"EpochSeedHook", "CurvesHook", "PlainCheckpointHook"}


@pytest.mark.parametrize("base", [DETECTOR, SEGMENTOR, "segformer_mit_b0_mini"])
def test_our_hooks_stay_next_to_the_users(tmp_path: Path, base: str) -> None:
    cfg = load_config(mine(tmp_path, "custom_hooks = [dict(type='EMAHook')]", base), {})
    kept = {hook["type"].rpartition(".")[2] for hook in cfg.default_hooks.values()}
    assert kept >= HOOKS
    assert [hook.type for hook in cfg.custom_hooks] == ["EMAHook"]


def test_a_hook_of_ours_is_removed_by_its_name(tmp_path: Path) -> None:
    path = mine(tmp_path, "custom_hooks = [dict(type='mm_vitbackbones.CurvesHook', points=9)]")
    assert "curves" not in load_config(path, {}).default_hooks  # the user's own is there
    cfg = load_config(CONFIGS / f"{DETECTOR}.py", {"default_hooks.curves": None})
    assert "curves" not in cfg.default_hooks
    assert "epoch_seed" in cfg.default_hooks


def test_a_backend_of_the_users_is_used_and_the_log_as_json_stays(tmp_path: Path) -> None:
    text = "vis_backends = [dict(type='TensorboardVisBackend')]"
    cfg = load_config(mine(tmp_path, text), {})
    assert [each.type for each in cfg.visualizer.vis_backends] == ["LocalVisBackend", "TensorboardVisBackend"]
    cfg = load_config(CONFIGS / f"{DETECTOR}.py", {"vis_backends.0.type": "TensorboardVisBackend"})
    assert [each.type for each in cfg.visualizer.vis_backends] == ["LocalVisBackend", "TensorboardVisBackend"]
    cfg = load_config(mine(tmp_path, f"{text}\nvisualizer = dict(vis_backends=[dict(type='WandbVisBackend')])"), {})
    assert [each.type for each in cfg.visualizer.vis_backends] == ["WandbVisBackend"]
