"""Checkpoints of the models of configs."""

from __future__ import annotations

from pathlib import Path

import torch

from mm_vitbackbones.cli.config import load_config
from mm_vitbackbones.cli.model import build_model


def random_checkpoint(config: Path) -> Path:
    """A checkpoint with the random weights that the config's model begins with, next to the config."""
    torch.manual_seed(0)
    model = build_model(load_config(config, {}))
    torch.save({"state_dict": model.state_dict()}, config.with_suffix(".pth"))
    return config.with_suffix(".pth")
