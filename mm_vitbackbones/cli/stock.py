"""Another head's stock config with one of our backbones: what was meant for a ResNet is reported."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from mm_vitbackbones import recipes
from mm_vitbackbones.backbones.base import Backbone
from mm_vitbackbones.checkpoints.loading import arch_name
from mm_vitbackbones.nodes import is_pretrained, nodes, type_name

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of the RGB images with which all published files of our families were trained."""

HIGH_RATE = 0.01
"""Adam's kinds are never used with a rate as high as this; SGD is."""

SHORT = {"tiny": "t", "small": "s", "medium": "m", "base": "b", "large": "l"}
"""Archs in the names of recipes."""


def warn_of_stock_settings(cfg: Config, backbone: Backbone | None) -> None:
    """Log an optimizer, and a normalisation of the image, that do not fit one of our backbones; each with what the
    nearest recipe has."""
    if backbone is None:
        return
    recipe = nearest_recipe(cfg.model, backbone)
    for found in (_optimizer(cfg.get("optim_wrapper"), recipe), _normalisation(cfg, backbone, recipe)):
        if found:
            print_log(found, logger="current", level=logging.WARNING)


def _optimizer(wrapper: Any, recipe: str) -> str:
    optimizer = wrapper.get("optimizer") if isinstance(wrapper, Mapping) else None
    name, rate = type_name(optimizer), optimizer.get("lr") if isinstance(optimizer, Mapping) else None
    sgd = name == "SGD"
    if not sgd and not (name.startswith("Adam") and isinstance(rate, (int, float)) and rate >= HIGH_RATE):
        return ""
    given = Config.fromfile(recipes.recipe(recipe)).optim_wrapper.optimizer
    wanted = f"dict(type='AdamW', lr={given.lr:g}, weight_decay={given.weight_decay:g})"
    return (
        f"optim_wrapper.optimizer is {name} with lr={rate}, which is for convolutions: for this backbone write "
        f"optim_wrapper=dict(_delete_=True, optimizer={wanted}), as the recipe {recipe} has it (for 16 images a step)"
    )


def _normalisation(cfg: Config, backbone: Backbone, recipe: str) -> str:
    given = cfg.model.get("data_preprocessor") or {}
    files = cfg.model.backbone.get("init_cfg")
    pretrained = any(is_pretrained(each) for each in (files if isinstance(files, (list, tuple)) else [files]))
    mean, std, rgb = given.get("mean"), given.get("std"), given.get("bgr_to_rgb", False)
    if not pretrained or backbone.in_channels != 3 or mean is None or std is None or given.get("rgb_to_bgr"):
        return ""
    loaders = [step for _, step in nodes(cfg.get("train_dataloader"), "") if "LoadImage" in type_name(step)]
    if any(type_name(step) != "LoadImageFromFile" for step in loaders):
        return ""  # a loader of the user's own has its own order of channels, and scale
    if rgb and _near(mean, MEAN) and _near(std, STD):
        return ""
    return (
        f"model.data_preprocessor has mean={[*mean]}, std={[*std]}, bgr_to_rgb={rgb}, and the backbone's weights were "
        f"trained with mean={[*MEAN]}, std={[*STD]}, bgr_to_rgb=True: set these, as the recipe {recipe} has them"
    )


def _near(given: Sequence[float], known: Sequence[float]) -> bool:
    return len(given) == len(known) and all(math.isclose(a, b, abs_tol=1.0) for a, b in zip(given, known, strict=True))


def nearest_recipe(model: Mapping[str, Any], backbone: Backbone) -> str:
    """The recipe of this backbone, or at least of its family, whose head is most like a model's."""
    segments = "decode_head" in model
    if segments:
        heads = ["segformer", "upernet", "fpn"]
        heads.sort(key=lambda head: head not in type_name(model["decode_head"]).lower())
        data = "ade20k"
    else:
        heads, data = ["retinanet", "mask_rcnn", "cascade_mask_rcnn"], "coco"
        if model.get("roi_head"):
            heads = heads[2:] + heads[:2] if "Cascade" in type_name(model) else heads[1:] + heads[:1]
    family = re.sub(r"(?<=[A-Z])(v\d)", r"_\1", type(backbone).__name__).lower()
    arch = "_".join(SHORT.get(part, part) for part in (arch_name(backbone) or "").split("_"))
    known = recipes.names()
    exact = [f"{head}_{family}_{arch}_{data}" for head in heads]
    alike = [name for head in heads for name in known if name.startswith(f"{head}_{family}_") and name.endswith(data)]
    fallback = [name for head in heads for name in known if name.startswith(head) and name.endswith(data)]
    return next(name for name in [*exact, *alike, *fallback] if name in known)
