"""Checkpoint files: of the models of configs, and as other projects write them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from mm_vitbackbones.cli.config import load_config
from mm_vitbackbones.cli.model import build_model


def random_checkpoint(config: Path) -> Path:
    """A checkpoint with the random weights that the config's model begins with, next to the config."""
    torch.manual_seed(0)
    model = build_model(load_config(config, {}))
    torch.save({"state_dict": model.state_dict()}, config.with_suffix(".pth"))
    return config.with_suffix(".pth")


def as_detectron2_saves(folder: Path, content: dict[str, Any]) -> Path:
    """A file of detectron2's model zoo: a pickle of NumPy arrays."""
    path = folder / "model_final_1a1c30.pkl"
    arrays = {key: tensor.numpy() for key, tensor in content["model"].items()}
    path.write_bytes(pickle.dumps({**content, "model": arrays, "__author__": "somebody"}))
    return path
