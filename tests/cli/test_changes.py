"""What a user changes in a config takes effect, or one line says where to change it."""

from __future__ import annotations

import copy
import importlib
import logging
import random
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS as REGISTERED
from mmengine.registry import MODELS, DefaultScope

from helpers.paths import CONFIGS, ROOT

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mm_vitbackbones.cli.config import load_config, read_config
from mm_vitbackbones.cli.keys import check_keys
from mm_vitbackbones.cli.preflight import check_backends
from mm_vitbackbones.cli.stock import warn_of_stock_settings
from mm_vitbackbones.cli.test import test_arguments as read_test_arguments
from mm_vitbackbones.cli.test import use_tta
from mm_vitbackbones.cli.train import train_arguments
from mm_vitbackbones.cli.variables import value_at
from mm_vitbackbones.engine.amp import use_amp
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


def test_another_runner_refuses_a_number_of_classes_that_the_heads_have_not(tmp_path: Path) -> None:
    cfg = Config.fromfile(mine(tmp_path, "num_classes = 2"))
    hook = REGISTERED.build(cfg.default_hooks.same_classes)
    with pytest.raises(UserError, match=r"num_classes=2 at the top .* model\.bbox_head\.num_classes=80"):
        hook.before_run(SimpleNamespace(cfg=cfg))
    cfg.num_classes = 80
    hook.before_run(SimpleNamespace(cfg=cfg))


def test_the_number_of_a_head_counts_if_it_came_after_that_at_the_top(tmp_path: Path) -> None:
    path = mine(
        tmp_path, "model = dict(decode_head=dict(num_classes=2), auxiliary_head=dict(num_classes=2))", SEGMENTOR
    )
    later = tmp_path / "later.py"
    later.write_text("_base_ = 'mine.py'\n")
    for file in (path, later):  # the recipe has 150 at its top
        cfg = load_config(file, {})
        assert "num_classes" not in cfg
        assert cfg.model.decode_head.num_classes == 2


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
        ("default_hooks = dict(checkpoiint=dict(interval=5))", "default_hooks.checkpoint"),
        ("default_hooks = dict(checkpoint=dict(intervaal=5))", "default_hooks.checkpoint.interval"),
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
    checked = 0
    for file in random.Random(0).sample(files, 150):
        try:
            cfg = read_config(file)
        except UserError:
            continue  # it needs a package that is not here
        if "model" in cfg:  # a folder of its own may hold parts of configs, as mmdet's common/ does
            load_config(file, {})
            checked += 1
    assert checked > 130


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


def test_a_backend_without_its_package_names_the_extra(detector: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = copy.deepcopy(detector)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_backends(cfg)
    for name, extra in (("Tensorboard", "tensorboard"), ("Wandb", "wandb"), ("MLflow", "mlflow")):
        cfg.visualizer.vis_backends = [dict(type="LocalVisBackend"), dict(type=f"{name}VisBackend")]
        with pytest.raises(
            UserError, match=rf"{name}VisBackend needs {extra}: pip install 'mm-vitbackbones\[{extra}\]'"
        ):
            check_backends(cfg)


# ---- another head's stock config

SWIN_FILE = dict(type="Pretrained", checkpoint="imagenet1k")


@pytest.mark.parametrize(
    ("library", "stock", "recipe"),
    [
        ("mmdet", "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py", "retinanet_swin_t_coco"),
        ("mmdet", "faster_rcnn/faster-rcnn_r50-caffe_fpn_1x_coco.py", "mask_rcnn_swin_t_coco"),
        ("mmdet", "cascade_rcnn/cascade-mask-rcnn_r50-caffe_fpn_1x_coco.py", "cascade_mask_rcnn_swin_t_coco"),
        ("mmseg", "upernet/upernet_r50_4xb4-160k_ade20k-512x512.py", "upernet_swin_t_ade20k"),
    ],
)
def test_a_stock_config_is_warned_of_its_optimizer_and_normalisation(
    library: str, stock: str, recipe: str, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = Config.fromfile(Path(importlib.import_module(library).__file__ or "").parent / ".mim/configs" / stock)
    caffe = "caffe" in stock
    said = warnings_of(cfg, caplog)
    assert len(said) == 1 + caffe
    assert "optim_wrapper.optimizer is SGD with lr=0.0" in said[0]
    assert "optim_wrapper=dict(_delete_=True, optimizer=dict(type='AdamW', lr=" in said[0]
    assert all(f"the recipe {recipe} has" in line for line in said)
    if caffe:
        assert "std=[1.0, 1.0, 1.0], bgr_to_rgb=False" in said[1]
        assert "std=[58.395, 57.12, 57.375], bgr_to_rgb=True" in said[1]


def test_a_recipe_is_not_warned_of_its_settings(caplog: pytest.LogCaptureFixture) -> None:
    for name in (DETECTOR, SEGMENTOR, "segformer_mit_b0_mini"):
        cfg = read_config(CONFIGS / f"{name}.py")
        assert not warnings_of(cfg, caplog, own=True)
    cfg.optim_wrapper.optimizer.lr = 0.02
    assert "AdamW with lr=0.02" in warnings_of(cfg, caplog, own=True)[0]


def warnings_of(cfg: Config, caplog: pytest.LogCaptureFixture, own: bool = False) -> list[str]:
    if not own:
        cfg.model.backbone = dict(type="mm_vitbackbones.Swin", arch="tiny", init_cfg=SWIN_FILE)
    caplog.clear()
    logger = MMLogger.get_instance("changes")
    if caplog.handler not in logger.handlers:
        logger.addHandler(caplog.handler)
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device("meta"):
        backbone = MODELS.build(cfg.model.backbone)
    warn_of_stock_settings(cfg, backbone)
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# ---- the table of docs/own_data.md

ROWS = re.compile(r"\| (?P<wish>[^|]+?) \| (?P<task>any|detection|instance|segmentation) \| `(?P<line>.+)` \|")
BASES = {"any": DETECTOR, "detection": DETECTOR, "instance": "mask_rcnn_swin_t_coco", "segmentation": SEGMENTOR}


def documented(folder: Path, wish: str, task: str = "") -> tuple[Config, Any]:
    """The config and the arguments that the documentation's line for a wish makes."""
    text = (ROOT / "docs" / "own_data.md").read_text(encoding="utf-8")
    line = next(row["line"] for row in ROWS.finditer(text) if row["wish"].startswith(wish) and task in row["task"])
    task = next(row["task"] for row in ROWS.finditer(text) if row["line"] == line)
    if line.startswith("--tta"):
        args = read_test_arguments([f"{BASES[task]}", "x.pth", *shlex.split(line)])
    elif line.startswith("--"):
        args = train_arguments([f"{BASES[task]}", *shlex.split(line)])
    else:
        return load_config(mine(folder, line, BASES[task]), {}), None
    return load_config(args.config, args.cfg_options), args


def test_every_documented_wish_is_tried_here() -> None:
    text = (ROOT / "docs" / "own_data.md").read_text(encoding="utf-8")
    section = text.partition("## Change what people change")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][2:]
    wishes = {(row["wish"], row["task"]) for row in ROWS.finditer(section)}
    assert len(wishes) == len(lines)
    tried = Path(__file__).read_text(encoding="utf-8").partition("def test_every_documented_wish")[2]
    assert not [wish for wish, _ in wishes if f'"{wish.partition(" (")[0]}"' not in tried]


@pytest.mark.parametrize(
    ("wish", "task", "expected"),
    [
        ("number of classes", "detection", {"model.bbox_head.num_classes": 2}),
        ("number of classes", "instance", {"model.roi_head.bbox_head.num_classes": 2}),
        ("number of classes", "segmentation", {"model.auxiliary_head.num_classes": 2}),
        ("number of classes in all heads", "any", {"model.bbox_head.num_classes": 2}),
        ("another image scale", "any", {"train_dataloader.dataset.pipeline[2].scale": (640, 400)}),
        ("another batch", "any", {"train_dataloader.batch_size": 4}),
        ("another learning rate", "any", {"optim_wrapper.optimizer.lr": 5e-5}),
        ("another number of epochs", "detection", {"train_cfg.max_epochs": 24}),
        ("another number of iterations", "segmentation", {"train_cfg.max_iters": 8000}),
        ("weights of classes", "instance", {"model.roi_head.mask_head.num_classes": 2}),
        ("TensorBoard", "any", {"visualizer.vis_backends[1].type": "TensorboardVisBackend"}),
        ("Weights & Biases", "any", {"visualizer.vis_backends[1].type": "WandbVisBackend"}),
        ("MLflow", "any", {"visualizer.vis_backends[1].type": "MLflowVisBackend"}),
        (
            "no curves.png",
            "any",
            {"default_hooks.curves": None, "default_hooks.epoch_seed.type": "mm_vitbackbones.EpochSeedHook"},
        ),
        ("random weights, nothing to download", "any", {"model.backbone.init_cfg": None}),
        ("weights of a file", "any", {"model.backbone.init_cfg.checkpoint": "pvt_small.pth"}),
    ],
)
def test_a_documented_line_sets_its_entry(tmp_path: Path, wish: str, task: str, expected: dict[str, Any]) -> None:
    cfg, _ = documented(tmp_path, wish, task)
    assert {where: value_at(cfg, where) for where in expected} == expected


def test_documented_lines_change_what_is_built(tmp_path: Path) -> None:
    _, args = documented(tmp_path, "going on with a run that stopped")
    assert args.resume
    cfg, _ = documented(tmp_path, "gradient accumulation over 4 iterations")
    wrapper = build_optim_wrapper(torch.nn.Linear(1, 1), cfg.optim_wrapper)
    assert wrapper._accumulative_counts == 4
    cfg, args = documented(tmp_path, "mixed precision")
    use_amp(cfg, args.amp)
    assert cfg.optim_wrapper.type in ("AmpOptimWrapper", "BFloat16OptimWrapper")
    cfg, _ = documented(tmp_path, "EMA, an average of the weights")
    assert REGISTERED.build(cfg.custom_hooks[0]).ema_cfg["momentum"] == 0.0002
    for task, metric in (("detection", "coco/bbox_mAP"), ("segmentation", "mIoU")):
        cfg, _ = documented(tmp_path, "early stopping", task)
        assert REGISTERED.build(cfg.custom_hooks[0]).monitor == metric
    cfg, _ = documented(tmp_path, "freezing the stem and two stages")
    with torch.device("meta"):
        backbone = MODELS.build(dict(cfg.model.backbone, type="mm_vitbackbones.PVT"))
    stages = {name: stage for name, stage in backbone.parameter_stages().items() if "head" not in name}
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert {stages[name] for name in trained} == {2, 3}


def test_documented_weights_of_classes_and_of_images_are_used(tmp_path: Path) -> None:
    cfg, _ = documented(tmp_path, "weights of classes", "instance")
    with DefaultScope.overwrite_default_scope("mmdet"):
        assert MODELS.build(cfg.model.roi_head.bbox_head.loss_cls).class_weight == [2.0, 1.0, 1.0]
    cfg, _ = documented(tmp_path, "weights of classes", "segmentation")
    with DefaultScope.overwrite_default_scope("mmseg"):
        assert MODELS.build(cfg.model.decode_head.loss_decode).class_weight == [1.0, 2.0]
    cfg, _ = documented(tmp_path, "rare classes more often")
    assert cfg.train_dataloader.dataset.type == "ClassBalancedDataset"
    assert cfg.train_dataloader.dataset.dataset.ann_file == "annotations/instances_train2017.json"
    cfg, args = documented(tmp_path, "TTA, a test at several sizes and flipped")
    assert args.tta
    use_tta(cfg)
    assert cfg.model.type == "SegTTAModel"
