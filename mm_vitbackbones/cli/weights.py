"""Checkpoints into the whole model of a config: all of them, or an error."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn

from mm_vitbackbones.checkpoints import layout_of, load_pretrained
from mm_vitbackbones.engine.resume import weights
from mm_vitbackbones.errors import UserError, shorten


def load(runner: Runner, checkpoint: dict[str, Any], path: Path) -> None:
    """Load the weights of a checkpoint, all of them, into a runner's model."""
    runner.call_hook("after_load_checkpoint", checkpoint=checkpoint)  # as MMEngine does; EMA's hook needs it
    load_weights(unwrapped(runner), checkpoint, path)
    runner.logger.info(f"loaded {path}")


def load_weights(model: nn.Module, checkpoint: dict[str, Any], path: Path) -> None:
    """Load the weights of a checkpoint, all of them, into a model; those of known parts in any known layout.

    Raises:
        UserError: if they are not those of this model.
    """
    given = weights(checkpoint)
    rest, loaded = set(given), dict[str, torch.Tensor]()
    for name, part in foreign_parts(model, given).items():
        if layout_of(part, given) == "openmmlab" and getattr(part, "norm_eps", 1e-6) is None:
            print_log(
                f"{path} is of OpenMMLab's own {type(part).__name__}, all of whose norms have an epsilon of 1e-6: with "
                f"model.{name}.norm_eps=1e-6 it gives here exactly what it gave there",
                logger="current",
                level=logging.WARNING,
            )
        rest &= set(load_pretrained(part, given).outside)
        loaded |= {f"{name}.{key}": tensor for key, tensor in part.state_dict().items()}
    given = {key: given[key] for key in given if key in rest} | loaded
    check_fits(model, given, path)
    model.load_state_dict(given)


def check_fits(model: nn.Module, given: dict[str, torch.Tensor], path: Path) -> None:
    """Every weight of the model is there, in its shape; MMEngine itself would leave out what is not."""
    needed = model.state_dict()
    missing = sorted(needed.keys() - given.keys())
    unexpected = sorted(given.keys() - needed.keys())
    reshaped = sorted(key for key in needed.keys() & given.keys() if needed[key].shape != given[key].shape)
    found = [
        f"{len(keys)} {kind} ({shorten(keys, 2)})"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if keys
    ]
    if found:
        raise UserError(
            f"{path} is not of this config's model; weights {'; '.join(found)}: give the config it was made by"
        )


def foreign_parts(model: nn.Module, given: dict[str, torch.Tensor]) -> dict[str, nn.Module]:
    """The parts of a model that weights hold in another layout than ours: those of a published file, or of a detector
    with another implementation of the same backbone."""
    return {name: part for name, part in model.named_children() if layout_of(part, given) not in (None, "ours")}


def unwrapped(runner: Runner) -> nn.Module:
    """The model, out of the wrapper of distributed runs."""
    return getattr(runner.model, "module", runner.model)
