"""DINO and Mask2Former against the configs of the libraries that they come from."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from helpers.paths import CONFIGS

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mm_vitbackbones import libraries

pytestmark = [pytest.mark.mmdet, pytest.mark.mmseg]

STOCK = {
    "dino": ("mmdet", "dino/dino-4scale_r50_8xb2-12e_coco.py"),
    "mask2former": ("mmdet", "mask2former/mask2former_r50_8xb2-lsj-50e_coco.py"),
    "mask2former_segmentation": ("mmseg", "mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py"),
}


HEADS_OF_MODELS = ("bbox_head", "panoptic_head", "panoptic_fusion_head", "decode_head")


def plain(value: Any) -> Any:
    """A value of a config without the scopes of its types."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value.removeprefix("mmdet.") if isinstance(value, str) else value


def stock(part: str) -> Config:
    library, name = STOCK[part]
    return Config.fromfile(Path(importlib.import_module(library).__file__ or "").parent / ".mim/configs" / name)


def built(model: Any, scope: str) -> nn.Module:
    libraries.use(scope)
    with DefaultScope.overwrite_default_scope(scope), torch.device("meta"):
        return MODELS.build(model)


def described(model: nn.Module) -> str:
    """Modules with their arguments. A dropout of nothing is written in two ways."""
    return repr(model).replace("Dropout(p=0.0, inplace=False)", "Identity()")


@pytest.mark.filterwarnings("ignore:The arguments `dropout` in MultiheadAttention:DeprecationWarning")  # in theirs
@pytest.mark.parametrize("part", STOCK)
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


@pytest.mark.parametrize("part", STOCK)
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
    assert rules[0] == rules[1]
