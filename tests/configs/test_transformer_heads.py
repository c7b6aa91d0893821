"""DINO, Mask2Former and YOLOF against the configs of the libraries that they come from: the parts, then the recipes."""

from __future__ import annotations

import copy
import functools
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from helpers.paths import CONFIGS, recipe_files
from helpers.recipes import build, load, weights_of

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mm_vitbackbones import libraries
from mm_vitbackbones.engine.layer_decay import rules_without_effect

pytestmark = [pytest.mark.mmdet, pytest.mark.mmseg]

STOCK = {
    "dino": ("mmdet", "dino/dino-4scale_r50_8xb2-12e_coco.py"),
    "mask2former": ("mmdet", "mask2former/mask2former_r50_8xb2-lsj-50e_coco.py"),
    "mask2former_segmentation": ("mmseg", "mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py"),
    "dino_5scale": ("mmdet", "dino/dino-5scale_swin-l_8xb2-12e_coco.py"),
    "yolof": ("mmdet", "yolof/yolof_r50-c5_8xb8-1x_coco.py"),
}
MODELS_OF_PARTS = ("dino", "dino_5scale", "mask2former", "mask2former_segmentation", "yolof")

# recipe: (the library's config that it follows, backbone, arch, drop path, how the name of the weights begins, M of
# parameters, published results)
SWIN_COCO = "mask2former/mask2former_swin-{}-p4-w7-224_8xb2-lsj-50e_coco.py"
SWIN_T, SWIN_S = "swin_tiny_patch4_window7_224.", "swin_small_patch4_window7_224."
SWIN_ADE20K = "mask2former/mask2former_swin-{}_8xb2-160k_ade20k-{}.py"
RECIPES: dict[str, tuple[str, str, str, float, str, float, tuple[str, ...]]] = {
    "dino_swin_t_coco": (STOCK["dino"][1], "Swin", "tiny", 0.1, SWIN_T, 48.19, ("box AP 51.3",)),
    "dino_swin_l_coco": (
        STOCK["dino_5scale"][1], "Swin", "large_w12", 0.2, "swin_large_patch4_window12_384_22k.", 218.33,
        ("box AP 57.2",),
    ),
    "dino_pvt_v2_b2_coco": (STOCK["dino"][1], "PVTv2", "b2", 0.1, "pvt_v2_b2.", 44.83, ()),
    "mask2former_swin_t_coco": (
        SWIN_COCO.format("t"), "Swin", "tiny", 0.3, SWIN_T, 47.42, ("box AP 47.7", "mask AP 44.7")
    ),
    "mask2former_swin_s_coco": (
        SWIN_COCO.format("s"), "Swin", "small", 0.3, SWIN_S, 68.74, ("box AP 49.3", "mask AP 46.1")
    ),
    "mask2former_swin_t_ade20k": (
        SWIN_ADE20K.format("t", "512x512"), "Swin", "tiny", 0.3, SWIN_T, 47.44, ("mIoU 48.66",)
    ),
    "mask2former_swin_b_ade20k": (
        SWIN_ADE20K.format("b-in22k-384x384-pre", "640x640"), "Swin", "base_w12", 0.3,
        "swin_base_patch4_window12_384_22k.", 106.92, ("mIoU 53.9",),
    ),
    "mask2former_mit_b2_ade20k": (SWIN_ADE20K.format("t", "512x512"), "MiT", "b2", 0.1, "mit_b2_", 44.01, ()),
    "yolof_pvt_s_coco": (STOCK["yolof"][1], "PVT", "small", 0.1, "pvt_small.", 43.84, ()),
}  # fmt: skip
recipes = pytest.mark.parametrize("name", RECIPES)


HEADS_OF_MODELS = ("bbox_head", "panoptic_head", "panoptic_fusion_head", "decode_head")


def plain(value: Any) -> Any:
    """A value of a config without the scopes of its types."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value.removeprefix("mmdet.") if isinstance(value, str) else value


def stock(part: str) -> Config:
    return of_library(*STOCK[part])


@functools.cache
def _read(library: str, name: str) -> Config:
    return Config.fromfile(Path(importlib.import_module(library).__file__ or "").parent / ".mim/configs" / name)


def of_library(library: str, name: str) -> Config:
    return copy.deepcopy(_read(library, name))


def built(model: Any, scope: str) -> nn.Module:
    libraries.use(scope)
    with DefaultScope.overwrite_default_scope(scope), torch.device("meta"):
        return MODELS.build(model)


def described(model: nn.Module) -> str:
    """Modules with their arguments. A dropout of nothing is written in two ways."""
    return repr(model).replace("Dropout(p=0.0, inplace=False)", "Identity()")


@pytest.mark.filterwarnings("ignore:The arguments `dropout` in MultiheadAttention:DeprecationWarning")  # in theirs
@pytest.mark.parametrize("part", MODELS_OF_PARTS)
def test_model_is_the_librarys_but_for_the_backbone(part: str) -> None:
    """The data and the backbone are those of recipes; the rest is compared as it is built, and then the numbers that
    no module shows."""
    theirs, ours = stock(part).model, Config.fromfile(CONFIGS / f"_base_/models/{part}.py").model
    theirs.backbone = ours.backbone
    for name, key in (("neck", "in_channels"), ("panoptic_head", "in_channels"), ("decode_head", "in_channels")):
        if name in theirs:
            theirs[name][key] = ours[name][key]
    theirs.data_preprocessor = ours.data_preprocessor
    first, second = (built(model, STOCK[part][0]) for model in (theirs, ours))
    assert described(second) == described(first)
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (first, second)]
    assert shapes[0] == shapes[1]
    for name in HEADS_OF_MODELS:
        if not hasattr(first, name):
            continue
        mine, other = getattr(second, name), getattr(first, name)
        for value in ("class_weight", "num_classes", "num_queries", "num_points", "train_cfg", "test_cfg"):
            assert plain(getattr(mine, value, None)) == plain(getattr(other, value, None)), value
        weights = [
            {key: loss.loss_weight for key, loss in head.named_modules() if hasattr(loss, "loss_weight")}
            for head in (mine, other)
        ]
        assert weights[0] == weights[1]


@pytest.mark.parametrize("part", ["dino", "mask2former", "mask2former_segmentation"])
def test_optimizer_is_the_recipes(part: str) -> None:
    theirs = stock(part).optim_wrapper
    ours = Config.fromfile(CONFIGS / f"_base_/optimizers/{part.removesuffix('_segmentation')}.py").optim_wrapper
    assert ours.clip_grad == theirs.clip_grad
    assert (ours.optimizer.type, ours.optimizer.lr) == (theirs.optimizer.type, theirs.optimizer.lr)
    assert ours.optimizer.weight_decay == theirs.optimizer.weight_decay
    assert ours.paramwise_cfg.get("norm_decay_mult") == theirs.paramwise_cfg.get("norm_decay_mult")
    rules = [
        {key.rstrip("."): (rule.lr_mult, rule.get("decay_mult", 1.0)) for key, rule in keys.items()}
        for keys in (ours.paramwise_cfg.custom_keys, theirs.paramwise_cfg.custom_keys)
    ]
    for key in [key for key in rules[0] if key.startswith(".norm")]:  # of the backbone, which is a ResNet there
        assert rules[0].pop(key) == (0.1, 0.0)
    assert rules[0] == rules[1]


def test_every_config_is_tested() -> None:
    starts = ("dino_", "mask2former_", "yolof_")
    assert {path.stem for path in recipe_files() if path.stem.startswith(starts)} == RECIPES.keys()


@functools.cache
def network_of(name: str) -> nn.Module:
    return build(load(name))


def stock_of(name: str) -> Config:
    return of_library("mmseg" if name.endswith("_ade20k") else "mmdet", RECIPES[name][0])


@recipes
def test_recipe_builds_and_its_parts_fit(name: str) -> None:
    _, kind, arch, drop_path, weights, millions, _ = RECIPES[name]
    cfg, model = load(name), network_of(name)
    backbone = cfg.model.backbone
    assert (backbone.type, backbone.arch, backbone.drop_path_rate) == (f"mm_vitbackbones.{kind}", arch, drop_path)
    assert weights_of(backbone).startswith(weights)
    theirs = stock_of(name).model.backbone
    if theirs.type == "SwinTransformer" and kind == "Swin":
        assert backbone.drop_path_rate == theirs.drop_path_rate
        assert theirs.init_cfg.checkpoint.rpartition("/")[2].startswith(weights.rstrip("."))
    assert tuple(backbone.get("out_indices", (0, 1, 2, 3))) == tuple(theirs.out_indices)
    taker = cfg.model.get("neck") or cfg.model.get("panoptic_head") or cfg.model.decode_head
    given = taker["in_channels"]
    assert (tuple(given) if isinstance(given, list) else (given,)) == model.backbone.channels
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.006)
    assert not rules_without_effect(cfg.optim_wrapper.paramwise_cfg, model)


@recipes
def test_every_parameter_has_the_recipes_rate_and_decay(name: str) -> None:
    cfg, theirs = load(name), stock_of(name)
    base, wanted = cfg.optim_wrapper.optimizer, theirs.optim_wrapper
    in_backbone = 1 / 3 if name.startswith("yolof_") else 0.1
    assert wanted.paramwise_cfg.custom_keys["backbone"].lr_mult == pytest.approx(in_backbone)
    if name.startswith("yolof_"):
        assert (base.type, base.lr, base.weight_decay) == ("AdamW", 2e-4, wanted.optimizer.weight_decay)
    else:
        assert (base.type, base.lr, base.weight_decay) == (
            wanted.optimizer.type, wanted.optimizer.lr, wanted.optimizer.weight_decay
        )  # fmt: skip
    assert cfg.optim_wrapper.get("clip_grad") == wanted.get("clip_grad")
    model = network_of(name)
    norms = {id(p) for part in model.modules() if "Norm" in type(part).__name__ for p in part.parameters(recurse=False)}
    groups = build_optim_wrapper(model, cfg.optim_wrapper).param_groups
    of = {id(group["params"][0]): group for group in groups}
    spared = ("query_embed", "query_feat", "level_embed", "relative_position_bias_table")
    for key, parameter in model.named_parameters():
        group = of[id(parameter)]
        assert group["lr"] == pytest.approx(base.lr * (in_backbone if key.startswith("backbone.") else 1)), key
        free = name.startswith("mask2former_") and (id(parameter) in norms or any(part in key for part in spared))
        free |= name.startswith("yolof_") and id(parameter) in norms and not key.startswith("backbone.")
        assert group["weight_decay"] == (0 if free else base.weight_decay), key


def steps_of(pipeline: list[Any]) -> list[Any]:
    """The steps, without what is a library's default, and (longer, shorter) side for either order of both."""
    defaults = (
        "backend_args",
        "resize_type",
        "to_float32",
        "meta_keys",
    )  # 8 bits are enough for what is read from 8 bits
    steps = []
    for step in pipeline:
        step = {key: value for key, value in step.items() if key not in defaults or value == "ResizeShortestEdge"}
        if step["type"] == "RandomChoice":
            step["transforms"] = [steps_of(each) for each in step["transforms"]]
        if step["type"] == "RandomChoiceResize" and isinstance(step["scales"][0], (tuple, list)):
            step["scales"] = sorted(tuple(sorted(scale)) for scale in step["scales"])
        steps.append({key: tuple(value) if key in ("scale", "crop_size") else value for key, value in step.items()})
    return steps


@recipes
def test_images_are_prepared_as_in_the_librarys_config(name: str) -> None:
    ours, theirs = load(name), stock_of(name)
    for split in ("train", "test"):
        datasets = [cfg[f"{split}_dataloader"].dataset for cfg in (ours, theirs)]
        mine, other = (steps_of(dataset.pipeline) for dataset in datasets)
        assert mine == other
        assert datasets[0].get("filter_cfg") == datasets[1].get("filter_cfg")
    assert ours.train_dataloader.batch_size == theirs.train_dataloader.batch_size
    mine, other = (cfg.model.data_preprocessor for cfg in (ours, theirs))
    assert mine.get("size") == other.get("size")
    assert mine.get("test_cfg") == other.get("test_cfg")
    padding = [(pad["type"], tuple(pad["size"]), pad["pad_mask"]) for pad in mine.get("batch_augments") or ()]
    assert padding == [(pad["type"], tuple(pad["size"]), pad["pad_mask"]) for pad in other.get("batch_augments") or ()]
    if name == "mask2former_swin_b_ade20k":
        sizes = ours.tta_pipeline[1]["transforms"][0]
        assert [size["scale"][1] / 640 for size in sizes] == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]


@recipes
def test_schedule_is_that_of_the_librarys_config(name: str) -> None:
    ours, theirs = load(name), stock_of(name)
    length = "max_epochs" if "max_epochs" in theirs.train_cfg else "max_iters"
    assert (ours.train_cfg.type, ours.train_cfg[length]) == (theirs.train_cfg.type, theirs.train_cfg[length])
    assert ours.train_cfg[length] % ours.train_cfg.val_interval == 0
    schedules = []
    for cfg in (ours, theirs):
        given = cfg.param_scheduler if isinstance(cfg.param_scheduler, list) else [cfg.param_scheduler]
        schedules.append([dict(each) for each in given if each["type"] != "LinearLR"])  # YOLOF's warm-up is for SGD
    assert schedules[0] == schedules[1]
    assert ours.auto_scale_lr.base_batch_size == theirs.auto_scale_lr.base_batch_size
    assert ours.log_processor.by_epoch == (length == "max_epochs")
    checkpoint = ours.default_hooks.checkpoint
    assert checkpoint.get("by_epoch", True) == (length == "max_epochs")
    assert ours.train_cfg[length] % checkpoint.interval == 0


@recipes
def test_recipes_file_says_what_was_published(name: str) -> None:
    comment = [line for line in (CONFIGS / f"{name}.py").read_text().splitlines()[:5] if line[0] == "#"]
    results = RECIPES[name][6]
    assert ("not measured here" in comment[2]) == bool(results)
    assert ("untested" in comment[2]) == (not results)
    assert all(result in comment[2] for result in results)
