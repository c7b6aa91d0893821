"""Loading checkpoints into the whole model of a config: all weights, or an error."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.runner import Runner, load_state_dict
from torch import nn

from mm_vitbackbones.checkpoints import layout_of, load_pretrained
from mm_vitbackbones.checkpoints.layout import State
from mm_vitbackbones.checkpoints.loading import part_under_our_names
from mm_vitbackbones.checkpoints.unwrapping import COMPILED, CONTAINERS, PARALLEL, Weights, unwrap_model
from mm_vitbackbones.engine.resume import allow_mmengine_checkpoints, read
from mm_vitbackbones.errors import CheckpointError, UserError, shorten

Path = str | os.PathLike[str]


class Trainer(Runner):
    """MMEngine's runner, whose ``load_from`` takes any file that ``init_cfg`` and the tools take: wrapped, in another
    layout of our backbones, with other things next to the weights. What it resumes is read by MMEngine alone."""

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        of_mmengine = "://" in filename and not filename.startswith(("http://", "https://"))  # open-mmlab://...
        if not (self._resume or of_mmengine):
            return start_from(self, filename)
        allow_mmengine_checkpoints()
        kwargs.setdefault("revise_keys", [(prefix, "") for prefix in (COMPILED, PARALLEL)])
        return super().load_checkpoint(filename, *args, **kwargs)


def start_from(runner: Runner, path: Path) -> dict[str, Any]:
    """Start from the weights of a checkpoint, by MMEngine's rule: weights that the model lacks, or has in another
    shape, are left out, and the log lists them. So a detector can start from one of other classes.

    Returns:
        the checkpoint, with the weights under ``state_dict``.

    Raises:
        UserError: if the model has none of these weights.
    """
    model, content = unwrapped(runner), read(path)
    weights = model_weights(content, path)
    given = weights.state
    with file_named(path):
        for name, part in model.named_children():
            given = part_under_our_names(part, name, given)
    needed = model.state_dict()
    if not any(key in needed and needed[key].shape == tensor.shape for key, tensor in given.items()):
        raise UserError(
            f"load_from: no weight of {path} is one of this model's ({shorten(sorted(given), 2)}): "
            "give a file of the same backbone, or leave load_from out"
        )
    checkpoint = _in_mmengines_form(content, weights.besides, given)
    runner.call_hook("after_load_checkpoint", checkpoint=checkpoint)
    load_state_dict(model, checkpoint["state_dict"], logger=runner.logger)
    runner.logger.info(f"loaded {path}")
    return checkpoint


def load(runner: Runner, checkpoint: dict[str, Any], path: Path) -> None:
    """Load the weights of a checkpoint, all of them, into a runner's model."""
    weights = model_weights(checkpoint, path)
    checkpoint = _in_mmengines_form(checkpoint, weights.besides, weights.state)
    runner.call_hook("after_load_checkpoint", checkpoint=checkpoint)  # as MMEngine does; EMA's hook needs it
    load_weights(unwrapped(runner), checkpoint, path)
    runner.logger.info(f"loaded {path}")


def _in_mmengines_form(content: dict[str, Any], kept: Iterable[str], state: State) -> dict[str, Any]:
    """The weights under ``state_dict``, and what the file has next to them; without other weights."""
    others = {key: content[key] for key in kept if key in content and key not in CONTAINERS}
    return {**others, "state_dict": state}


def model_weights(checkpoint: dict[str, Any], path: Path) -> Weights:
    """The weights of a whole model's file; where it holds several, the log says which.

    Raises:
        CheckpointError: if it holds none.
    """
    with file_named(path):
        weights = unwrap_model(checkpoint)
    for note in weights.notes:
        print_log(f"{path}: {note}", logger="current")
    return weights


@contextmanager
def file_named(path: Path) -> Iterator[None]:
    """Put the file's name before what is wrong with its content."""
    try:
        yield
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from None


def load_weights(model: nn.Module, checkpoint: dict[str, Any], path: Path) -> None:
    """Load the weights of a checkpoint, all of them, into a model; those of known parts in any known layout.

    Raises:
        UserError: if they are not those of this model.
        CheckpointError: if there are none, or those of a known part do not fit.
    """
    given = model_weights(checkpoint, path).state
    with file_named(path):
        foreign = foreign_parts(model, given)
    rest, loaded = set(given), dict[str, torch.Tensor]()
    for name, part in foreign.items():
        if layout_of(part, given) == "openmmlab" and getattr(part, "norm_eps", 1e-6) is None:
            print_log(
                f"{path} is of OpenMMLab's own {type(part).__name__}, whose norms all have an epsilon of 1e-6: set "
                f"model.{name}.norm_eps=1e-6 to get exactly the same results",
                logger="current",
                level=logging.WARNING,
            )
        rest &= set(load_pretrained(part, given).outside)
        loaded |= {f"{name}.{key}": tensor for key, tensor in part.state_dict().items()}
    given = {key: given[key] for key in given if key in rest} | loaded
    check_fits(model, given, path)
    model.load_state_dict(given)


def check_fits(model: nn.Module, given: dict[str, torch.Tensor], path: Path) -> None:
    """Check that every weight of the model is there, in its shape; MMEngine itself would leave out the others."""
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
    """The model, without the wrapper of distributed runs."""
    return getattr(runner.model, "module", runner.model)
