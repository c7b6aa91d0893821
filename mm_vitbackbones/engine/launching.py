"""Train and test: from a command line to MMEngine's Runner."""

from __future__ import annotations

import logging
import os
import re
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn

from mm_vitbackbones.checkpoints import layout_of, load_pretrained
from mm_vitbackbones.checkpoints.errors import shorten
from mm_vitbackbones.engine import preflight
from mm_vitbackbones.engine.adjusting import check_rules, set_num_classes, use_local_norms, use_tta
from mm_vitbackbones.engine.arguments import LATEST, check_data_arguments, test_arguments, train_arguments
from mm_vitbackbones.engine.errors import UserError, did_you_mean
from mm_vitbackbones.engine.precision import use_amp
from mm_vitbackbones.engine.predictions import dump_predictions, keep_predictions
from mm_vitbackbones.engine.resume import (
    allow_mmengine_checkpoints,
    checkpoints_in,
    latest_checkpoint,
    read,
    weights,
)


def train(argv: list[str]) -> None:
    """tools/train.py: train as the config says. See ``train_arguments`` for the command line."""
    args = train_arguments(argv)
    cfg = load_config(args.config, args.cfg_options)
    work_dir = args.work_dir or Path(cfg.get("work_dir") or Path("work_dirs", args.config.stem))
    cfg.work_dir = str(work_dir)
    if args.seed is not None:
        set_seed(cfg, args.seed)
    if args.auto_scale_lr:
        if "base_batch_size" not in (cfg.get("auto_scale_lr") or {}):
            raise UserError(
                "--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config: the batch of lr"
            )
        cfg.auto_scale_lr.enable = True
    if cfg.get("train_dataloader") is None or cfg.get("train_cfg") is None:
        raise UserError(f"{args.config} says nothing about training: it needs train_dataloader and train_cfg")
    splits = [split for split in ("train", "val") if cfg.get(f"{split}_dataloader") is not None]
    preflight.check(cfg, splits, every=args.check_all)
    if args.amp:
        use_amp(cfg, args.amp)
    checkpoint = None
    if args.resume:
        path = latest_checkpoint(work_dir) if args.resume == LATEST else Path(args.resume)
        checkpoint = read(path)
        check_resumable(checkpoint, path, cfg.train_cfg)
        # Before anything is built: MMEngine itself goes back to the first run's seed when the sampler has another.
        resume_seed(cfg, checkpoint["meta"].get("seed"), args.seed)
        cfg.load_from, cfg.resume = str(path), True
    elif found := checkpoints_in(work_dir):
        raise UserError(
            f"{work_dir} already holds {found[-1].name} of an earlier run: "
            "continue it with --resume, or start another with --work-dir"
        )
    if cfg.get("load_from"):
        allow_mmengine_checkpoints()
    set_launcher(cfg, args.launcher)
    with registry_errors(args.config):
        runner = Runner.from_cfg(cfg)
        if checkpoint is not None:
            check_fits(unwrapped(runner), weights(checkpoint), path)
        check_rules(cfg, unwrapped(runner))
        runner.train()


def test(argv: list[str]) -> None:
    """tools/test.py: evaluate a checkpoint. See ``test_arguments`` for the command line."""
    args = test_arguments(argv)
    cfg = load_config(args.config, args.cfg_options)
    # Not the training's own folder: there it would replace the dumped config.
    cfg.work_dir = str(args.work_dir or Path(cfg.get("work_dir") or Path("work_dirs", args.config.stem), "test"))
    if cfg.get("test_dataloader") is None or cfg.get("test_cfg") is None:
        raise UserError(f"{args.config} says nothing about testing: it needs test_dataloader and test_cfg")
    checkpoint = read(args.checkpoint)
    preflight.check(cfg, splits=["test"])
    if args.tta:
        use_tta(cfg)
    cfg.load_from, cfg.resume = None, False
    if args.show_dir:
        if args.show_dir.exists() and not args.show_dir.is_dir():
            raise UserError(f"--show-dir {args.show_dir} is a file; name a folder")
        pictures = {
            "type": "mm_vitbackbones.PicturesHook",
            "out_dir": str(args.show_dir),
            "score_thr": args.show_score,
        }
        cfg.custom_hooks = [*(cfg.get("custom_hooks") or []), pictures]
    with tempfile.TemporaryDirectory() as scratch:
        if args.out:
            dump_predictions(cfg, args.out, Path(scratch))
        set_launcher(cfg, args.launcher)
        with registry_errors(args.config):
            runner = Runner.from_cfg(cfg)
            load(runner, checkpoint, args.checkpoint)
            runner.test()
        if args.out and runner.rank == 0:
            keep_predictions(args.out, Path(scratch))
    for what, where in (("predictions", args.out), ("pictures", args.show_dir)):
        if where:
            runner.logger.info(f"{what}: {where}")


def check_data(argv: list[str]) -> None:
    """tools/check_data.py: what is wrong with the data sets of a config, and what will be left out of them."""
    args = check_data_arguments(argv)
    cfg = load_config(args.config, args.cfg_options)
    splits = [split for split in ("train", "val", "test") if cfg.get(f"{split}_dataloader") is not None]
    preflight.check(cfg, splits, every=args.check_all)
    looked = "every picture and mask" if args.check_all else "some pictures and masks; --check-all looks at every one"
    print_log(f"nothing wrong was found in {', '.join(splits)} ({looked})", logger="current")


def load_config(path: Path, options: dict[str, Any]) -> Config:
    """A config file with ``--cfg-options`` merged into it.

    Raises:
        UserError: there is no such file, or it (or one of its bases) cannot be read, or an option does not fit.
    """
    if not path.is_file():
        folders = {path.parent, Path("configs"), Path(__file__).parents[2] / "configs"}
        known = {file.name: str(file) for folder in sorted(folders) for file in folder.glob("*.py")}
        near = did_you_mean(path.stem + ".py", known)
        raise UserError(f"no config {path}{near or '; the configs are in configs/'}")
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is code: it can raise anything
        raise UserError(f"{path} cannot be read: {_told(error)}") from None
    if "model" not in cfg:
        raise UserError(f"{path} is no config of a model: it defines no `model`")
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, AssertionError, AttributeError, IndexError) as error:
        raise UserError(f"--cfg-options does not fit {path}: {_told(error)}") from None
    set_num_classes(cfg)
    return cfg


def check_resumable(checkpoint: dict[str, Any], path: Path, train_cfg: dict[str, Any]) -> None:
    """A checkpoint carries the state of a training run, and the run is not over."""
    if not {"optimizer", "message_hub", "meta"} <= checkpoint.keys():
        raise UserError(
            f"{path} holds weights alone, not the state of a training run: "
            "to start from its weights give --cfg-options load_from=FILE instead of --resume"
        )
    for unit in ("epoch", "iter"):
        last = train_cfg.get(f"max_{unit}s")
        if last and checkpoint["meta"].get(unit, 0) >= last:
            raise UserError(
                f"nothing left to resume: {path} is at {unit} {checkpoint['meta'][unit]} of {last}; "
                f"to go on longer raise train_cfg.max_{unit}s with --cfg-options"
            )


def resume_seed(cfg: Config, before: int | None, wanted: int | None) -> None:
    """Take up the seed of the run that is resumed."""
    if before is None:
        return
    if wanted not in (None, before):
        raise UserError(f"--seed {wanted}: the run to resume has the seed {before}; leave --seed out")
    set_seed(cfg, before)


def set_seed(cfg: Config, seed: int) -> None:
    cfg.randomness = {**(cfg.get("randomness") or {}), "seed": seed}


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


def foreign_parts(model: nn.Module, given: dict[str, torch.Tensor]) -> dict[str, nn.Module]:
    """The parts of a model that weights hold in another layout than ours: those of a published file, or of a detector
    with another implementation of the same backbone."""
    return {name: part for name, part in model.named_children() if layout_of(part, given) not in (None, "ours")}


def unwrapped(runner: Runner) -> nn.Module:
    """The model, out of the wrapper of distributed runs."""
    return getattr(runner.model, "module", runner.model)


def set_launcher(cfg: Config, launcher: str) -> None:
    """Make the processes that torchrun (or slurm, or mpi) started one run; on a machine without GPUs over gloo."""
    if launcher == "none" and "LOCAL_RANK" in os.environ and "RANK" in os.environ:
        launcher = "pytorch"
    cfg.launcher = launcher
    use_local_norms(cfg, distributed=launcher != "none")
    if launcher == "none" or torch.cuda.is_available():
        os.environ.setdefault("LOCAL_RANK", "0")
        return
    if launcher != "pytorch":
        raise UserError(f"--launcher {launcher} needs GPUs; without any, start the processes with torchrun")
    # MMEngine would pick a GPU for each process, and hand its index to the wrapper of the model.
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    cfg.model_wrapper_cfg = {
        "type": "MMDistributedDataParallel",
        "device_ids": None,
        "broadcast_buffers": False,
        "find_unused_parameters": cfg.get("find_unused_parameters", False),
    }


@contextmanager
def registry_errors(config: Path) -> Iterator[None]:
    """Tell what a config alone can have got wrong in one line: a type name, or an argument of a type."""
    try:
        yield
    except (KeyError, TypeError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        building = any(Path(frame.filename).match("mmengine/registry/build_functions.py") for frame in frames)
        if not building or frames[-1].name not in ("build_from_cfg", "__init__"):
            raise
        message = str(error.args[0])
        if unknown := re.match(r"(\S+) is not in the (\S+)::(.+?) registry", message):
            name, scope, kind = unknown.groups()
            raise UserError(f"{config}: {preflight.unknown_type(name, kind, scope)}") from None
        if re.search(r"__init__\(\) (got an unexpected keyword|missing \d+ required)", message):
            raise UserError(
                f"{config}: {message.replace('.__init__()', '')}; see the arguments of that class"
            ) from None
        raise


def _told(error: Exception) -> str:
    """An exception in one line, with its type where the message alone says little."""
    message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return message if isinstance(error, SyntaxError) else f"{type(error).__name__}: {message}"
