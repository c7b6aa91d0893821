"""The whole network of a config, outside a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mm_vitbackbones import libraries
from mm_vitbackbones.cli.config import use_local_norms


def build_model(cfg: Config, device: str = "cpu") -> Any:
    """The detector or segmentor of a config, without pretrained weights, for one process.

    On the device ``"meta"`` no weights are allocated. A ``SyncBN`` in the config becomes ``BN``.
    """
    scope = libraries.scope_of(cfg)
    libraries.load(scope)
    use_local_norms(cfg, distributed=False)
    with DefaultScope.overwrite_default_scope(scope), torch.device(device):
        return MODELS.build(without_pretrained(cfg.model))


def without_pretrained(model: Any) -> Any:
    """A model's config without pretrained weights for its backbone."""
    backbone = model.get("backbone")
    return {**model, "backbone": {**backbone, "init_cfg": None}} if isinstance(backbone, Mapping) else model
