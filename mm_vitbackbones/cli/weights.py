"""Loading checkpoints into the whole model of a config: all weights, or an error."""

from __future__ import annotations

import logging
import os
import pickle
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.runner.checkpoint import load_from_local
from torch import nn

from mm_vitbackbones import adapters
from mm_vitbackbones.checkpoints import layout_of, load_pretrained
from mm_vitbackbones.checkpoints.addresses import loaders
from mm_vitbackbones.checkpoints.layout import State
from mm_vitbackbones.checkpoints.loading import part_under_our_names
from mm_vitbackbones.checkpoints.reading import check_pickle, local_copy
from mm_vitbackbones.checkpoints.unwrapping import COMPILED, CONTAINERS, PARALLEL, Weights, unwrap_model
from mm_vitbackbones.checkpoints.values import check_values
from mm_vitbackbones.engine import summary
from mm_vitbackbones.engine.plain_data import equal
from mm_vitbackbones.engine.resume import allow_mmengine_checkpoints, check_state, read
from mm_vitbackbones.engine.saving import AtomicCheckpointHook, averages, optimizers
from mm_vitbackbones.engine.schedules import accumulation, batch_size, follow_config, named_wrappers
from mm_vitbackbones.engine.sharding import ShardedModel, whole_states
from mm_vitbackbones.engine.stopping import KeepWorking
from mm_vitbackbones.errors import CheckpointError, CheckpointMismatch, UserError, counted, shorten

Path = str | os.PathLike[str]


class Trainer(Runner):
    """MMEngine's runner for training with the tools.

    ``load_from`` takes any file that ``init_cfg`` and the tools take: wrapped, in another layout of our backbones, with
    other things next to the weights. A resumed run follows its config, also where that has changed since (see
    ``engine.schedules``). The learning rate is scaled by all images of a step of the optimizer.
    """

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if not self._resume:
            return start_from(self, filename)
        allow_mmengine_checkpoints()
        kwargs.setdefault("revise_keys", [(prefix, "") for prefix in (COMPILED, PARALLEL)])
        try:
            with local_copy(filename) as (path, _), loaders(load_from_local, ("",)):
                check_pickle(path)
                checkpoint = super().load_checkpoint(str(path), *args, **kwargs)
        except pickle.UnpicklingError as error:
            reason = re.search(r"Unsupported \w+: .*? (\S+) was not", str(error))
            raise UserError(
                f"{filename} cannot be resumed, as it holds {reason[1] if reason else 'objects'}, which is no plain "
                "data and may run code: start from its weights with load_from"
            ) from None
        follow_config(self, checkpoint)
        now = getattr(self.train_dataloader.dataset, "metainfo", None)
        if equal(checkpoint["meta"].get("dataset_meta"), now):  # MMEngine compares bytes, which lists change
            checkpoint["meta"]["dataset_meta"] = now
        return checkpoint

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        if fn_name == "after_load_checkpoint":  # before any hook reads it, and before MMEngine loads it
            checkpoint, path = kwargs["checkpoint"], self._load_from or "the checkpoint"
            if self._resume:
                check_state(checkpoint, path)
            with file_named(path):
                state = unwrap_model(checkpoint).state
                if self._resume:
                    _check_adapters(unwrapped(self), state, path)
                check_values(unwrapped(self), state)
                if isinstance(trained := checkpoint.get("ema_state_dict"), Mapping):
                    check_values(unwrapped(self), dict(trained), "module.")
        super().call_hook(fn_name, **kwargs)

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        try:
            super().resume(filename, *args, **kwargs)
        except (AssertionError, AttributeError, IndexError, KeyError, RecursionError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{filename} cannot be resumed, as its state is not that of a training ({type(error).__name__}: "
                f"{reason}): start from its weights with load_from"
            ) from error

    @staticmethod
    def build_dataloader(*args: Any, **kwargs: Any) -> Any:
        loader = Runner.build_dataloader(*args, **kwargs)
        loader.worker_init_fn = KeepWorking(loader.worker_init_fn)
        return loader

    def load_or_resume(self) -> None:
        """What comes after it is the first iteration."""
        super().load_or_resume()
        if not isinstance(self.model, ShardedModel):
            if "ShardedModel" in str((self.cfg.get("model_wrapper_cfg") or {}).get("type")):
                self.logger.warning("model_wrapper_cfg: one process trains, and keeps all weights")
        elif not self.model.is_sharded:
            self.model.shard(optimizers(self), averages(self))
            self.logger.info(f"weights and states of the optimizer are spread over {self.world_size} processes")

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with ExitStack() as stack:
            if isinstance(self.model, ShardedModel) and self.model.is_sharded:
                stack.enter_context(whole_states([self.model.module, *averages(self)], optimizers(self)))
            super().save_checkpoint(*args, **kwargs)

    def train(self) -> nn.Module:
        try:
            return super().train()
        finally:
            for hook in self.hooks:
                if isinstance(hook, AtomicCheckpointHook):
                    hook.release()

    def scale_lr(self, optim_wrapper: Any, auto_scale_lr: dict[str, Any] | None = None) -> None:
        if not (auto_scale_lr and auto_scale_lr.get("enable")):
            return
        images = batch_size(self.train_dataloader)
        if images is None:
            raise UserError("auto_scale_lr: train_dataloader does not say its batch_size; scale lr by hand")
        if not (base := auto_scale_lr.get("base_batch_size")):
            raise UserError("auto_scale_lr needs base_batch_size: the images in a step for which lr is meant")
        for wrapper in named_wrappers(optim_wrapper).values():
            counts = accumulation(wrapper)
            factor = images * self.world_size * counts / base
            for group in wrapper.optimizer.param_groups:
                group["lr"] = group["lr"] * factor
            self.logger.info(
                f"auto_scale_lr: {counted(images, 'image')} x {self.world_size} process(es) x {counts} iteration(s) = "
                f"{counted(images * self.world_size * counts, 'image')} a step, and the config's rate is for {base}: "
                f"the learning rate is scaled by {factor:g}"
            )


class EvaluationRunner(Runner):
    """MMEngine's runner for a test of the weights that ``use`` was given."""

    _weights: dict[str, Any] | None = None

    def use(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Test these weights, all of them.

        Raises:
            UserError: if they are not those of this model.
        """
        self._weights, self._path = converted(self, checkpoint, path), path

    def load_or_resume(self) -> None:
        """Called once the hooks know the model: ``EMAHook`` has its copy of it by then."""
        if self._weights is not None:
            _load_converted(self, self._weights, self._path)
            self._has_loaded = True


def start_from(runner: Runner, path: Path) -> dict[str, Any]:
    """Start from the weights of a checkpoint that the model has, in its shapes. The rest of the model keeps its initial
    values, and the log lists it. So a detector can start from one of other classes.

    Returns:
        the checkpoint, with the weights under ``state_dict``.

    Raises:
        UserError: if the model, or its backbone, has none of these weights.
    """
    model, content = unwrapped(runner), read(path)
    weights = model_weights(content, path)
    report_averages(content, path)
    given = weights.state
    _check_adapters(model, given, path, required=False)
    with file_named(path):
        for name, part in model.named_children():
            _report_epsilon(part, name, given, path)
            given = _part_of(part, name, given)
    needed = model.state_dict()
    fits = {key: tensor for key, tensor in given.items() if key in needed and needed[key].shape == tensor.shape}
    if not fits:
        raise UserError(
            f"load_from: no weight of {path} is one of this model's ({shorten(sorted(given), 2)}): "
            "give a file of the same backbone, or leave load_from out"
        )
    trained = "backbone."
    if any(key.startswith(trained) for key in needed) and not any(key.startswith(trained) for key in fits):
        theirs = sorted(key for key in given if key.startswith(trained)) or sorted(given)
        raise UserError(
            f"load_from: no weight of {path} fits this model's backbone ({shorten(theirs, 2)}), only {len(fits)} of "
            "other parts: give a file of the same backbone, or leave load_from out"
        )
    with file_named(path):
        check_values(model, fits)
    _report_start(needed, given, fits, path)
    checkpoint = _in_mmengines_form(content, weights.besides, fits)
    runner.call_hook("after_load_checkpoint", checkpoint=checkpoint)
    model.load_state_dict(checkpoint["state_dict"], strict=False)
    runner.logger.info(f"loaded {path}")
    return checkpoint


def _part_of(part: nn.Module, name: str, given: State) -> State:
    """A whole network's state, in which one of its parts has our names, and what can be made to fit fits."""
    if layout_of(part, given) is None:
        return given
    try:
        report = load_pretrained(part, given)
    except CheckpointMismatch:  # of another arch: some of it may fit
        return part_under_our_names(part, name, given)
    state = part.state_dict()
    return {key: given[key] for key in report.outside} | {f"{name}.{key}": state[key] for key in report.loaded}


def _report_start(needed: State, given: State, fits: State, path: Path) -> None:
    """Log what a training does not take from a file, in at most two lines."""
    fresh = [key for key in needed if key not in fits]
    unused = [f"{key} {tuple(given[key].shape)}" for key in given if key not in fits]
    if fresh:
        parts = Counter(key.partition(".")[0] for key in needed)
        of = [f"{n} of {parts[part]} of {part}" for part, n in Counter(k.partition(".")[0] for k in fresh).items()]
        print_log(
            f"load_from: {len(fits)} of {len(needed)} tensors come from {path}; fresh: {shorten(of)} "
            f"({shorten([f'{key} {tuple(needed[key].shape)}' for key in fresh], 4)})",
            logger="current",
            level=logging.WARNING,
        )
    if unused:
        print_log(f"load_from: not used of {path}: {shorten(unused, 4)}", logger="current")


def load(runner: Runner, checkpoint: dict[str, Any], path: Path) -> None:
    """Load the weights of a checkpoint, all of them, into a runner's model."""
    _load_converted(runner, converted(runner, checkpoint, path), path)


def converted(runner: Runner, checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """A checkpoint in MMEngine's form, for this runner's model, with all of the model's weights.

    Raises:
        UserError: if they are not those of this model.
    """
    weights = model_weights(checkpoint, path)
    found = _in_mmengines_form(checkpoint, weights.besides, weights.state)
    return {**found, "state_dict": fitting_weights(unwrapped(runner), found, path)}


def _load_converted(runner: Runner, checkpoint: dict[str, Any], path: Path) -> None:
    runner.call_hook("after_load_checkpoint", checkpoint=checkpoint)  # as MMEngine does; EMAHook needs it
    unwrapped(runner).load_state_dict(checkpoint["state_dict"])
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


def report_averages(checkpoint: dict[str, Any], path: Path) -> None:
    """Log that the weights of a file are averages of a training's."""
    if "ema_state_dict" in checkpoint:
        print_log(f"{path}: its weights are the averages that EMAHook made in the training", logger="current")


def load_weights(model: nn.Module, checkpoint: dict[str, Any], path: Path) -> None:
    """Load the weights of a checkpoint, all of them, into a model; those of known parts in any known layout.

    Raises:
        UserError: if they are not those of this model.
        CheckpointError: if there are none, or those of a known part do not fit.
    """
    model.load_state_dict(fitting_weights(model, checkpoint, path))


def fitting_weights(model: nn.Module, checkpoint: dict[str, Any], path: Path) -> State:
    """The weights of a checkpoint under the model's names, all of them; see ``load_weights``. Those that come in
    another layout are in the model already."""
    given = model_weights(checkpoint, path).state
    _check_adapters(model, given, path)
    report_averages(checkpoint, path)
    with file_named(path):
        foreign = foreign_parts(model, given)
    rest, loaded = set(given), dict[str, torch.Tensor]()
    for name, part in foreign.items():
        _report_epsilon(part, name, given, path)
        rest &= set(load_pretrained(part, given).outside)
        loaded |= {f"{name}.{key}": tensor for key, tensor in part.state_dict().items()}
    given = {key: given[key] for key in given if key in rest} | loaded
    check_fits(model, given, path)
    with file_named(path):
        check_values(model, given)
    return given


def _check_adapters(model: nn.Module, given: State, path: Path, required: bool = True) -> None:
    """Check that weights have the adapters of the model, or none where they may have none."""
    if reason := adapters.misfit(given, model.state_dict(), required):
        raise UserError(f"{path}: {reason}")


def _report_epsilon(part: nn.Module, name: str, given: State, path: Path) -> None:
    """Log which setting makes a part compute as the one that its weights are of."""
    if layout_of(part, given) == "openmmlab" and getattr(part, "norm_eps", 1e-6) is None:
        print_log(
            f"{path} is of OpenMMLab's own {type(part).__name__}, whose norms all have an epsilon of 1e-6: set "
            f"model.{name}.norm_eps=1e-6 to get exactly the same results",
            logger="current",
            level=logging.WARNING,
        )


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
    """The model, without the wrappers of distributed runs and of test-time augmentation."""
    return summary.unwrapped(runner.model)
