"""Train a detector or a segmentor of a config."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.registry import HOOKS

from mm_vitbackbones.cli import preflight
from mm_vitbackbones.cli.arguments import Parser, add_checks, add_common
from mm_vitbackbones.cli.batches import FeasibleHook, lone_values, without_workers
from mm_vitbackbones.cli.compiling import CompilingHook, add_compile, compile_backbones
from mm_vitbackbones.cli.config import load_config
from mm_vitbackbones.cli.launch import leaving_group, registry_errors, set_launcher
from mm_vitbackbones.cli.preflight import check_rules
from mm_vitbackbones.cli.weights import Trainer, check_fits, model_weights, unwrapped
from mm_vitbackbones.engine.amp import use_amp
from mm_vitbackbones.engine.console import Console
from mm_vitbackbones.engine.hooks import PlainCheckpointHook
from mm_vitbackbones.engine.lock import work_dir_lock
from mm_vitbackbones.engine.logs import keep_going
from mm_vitbackbones.engine.resume import (
    allow_mmengine_checkpoints,
    check_state,
    checkpoints_in,
    holds_training,
    newest_first,
    newest_whole,
    read,
)
from mm_vitbackbones.engine.saving import EVALUATION, evaluation_is_due
from mm_vitbackbones.engine.schedules import trained_by_epoch
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.files import check_room

SMALLEST = 2**20
"""Bytes that have to be free for a run's log. What its checkpoints need is known once the model is there."""

LATEST = "latest"
"""What a bare ``--resume`` stands for."""


def train_arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="train.py", description="Train a detector or a segmentor from an mmdet or mmseg config.")
    add_common(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const=LATEST,
        metavar="CHECKPOINT",
        help="continue from this checkpoint; without a value, from the latest one in the work dir",
    )
    parser.add_argument(
        "--amp",
        nargs="?",
        const="auto",
        choices=("auto", "bf16", "fp16"),
        metavar="bf16|fp16",
        help="mixed precision; without a value, bf16 where the device computes in it, else fp16",
    )
    parser.add_argument(
        "--auto-scale-lr", action="store_true", help="scale the learning rate by this run's batch / the recipe's"
    )
    parser.add_argument(
        "--seed", type=int, help="seed of all random numbers; without it, a random one, which is logged"
    )
    parser.add_argument(
        "--check-all", action="store_true", help="check every image and mask before training, not a sample"
    )
    add_compile(parser)
    add_checks(parser)
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """tools/train.py: train as the config says. See ``train_arguments`` for the command line."""
    args = train_arguments(argv)
    with leaving_group(), Console(args.verbose) as console:
        _train(args, console)


def check_runner(cfg: Config) -> None:
    """Raises:
    UserError: the config is for another runner, whose settings MMEngine's Runner would pass over.
    """
    if cfg.get("runner_type", "Runner") == "Runner" and cfg.get("strategy") is None:
        return
    key = "runner_type" if cfg.get("strategy") is None else "strategy"
    raise UserError(
        f"{key} is for another runner, and train runs MMEngine's Runner, which does not read it: leave it out, or "
        "start that runner in a program of your own. To shard weights, there is "
        "model_wrapper_cfg=dict(type='mm_vitbackbones.ShardedModel') (docs/configs.md, Sharded weights)"
    )


def _train(args: argparse.Namespace, console: Console) -> None:
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
    if missing := [part for part in ("train_dataloader", "train_cfg", "optim_wrapper") if cfg.get(part) is None]:
        raise UserError(f"{args.config} says nothing about training: it needs {' and '.join(missing)}")
    check_runner(cfg)
    splits = [split for split in ("train", "val") if cfg.get(f"{split}_dataloader") is not None]
    if args.check_all and args.skip_checks:
        raise UserError("--check-all and --skip-checks are contrary: give one of them")
    check_room(work_dir, f"--work-dir {work_dir}", SMALLEST)
    if (folder := checkpoint_folder(cfg, work_dir)) is not None:
        check_room(folder, f"default_hooks.checkpoint.out_dir={folder.parent}", SMALLEST)
    preflight.check_or_skip(cfg, splits, args.check_all, args.skip_checks)
    if args.amp:
        use_amp(cfg, args.amp)
    use_atomic_checkpoints(cfg)
    with contextlib.ExitStack() as stack:
        if work_dir.is_dir():  # before its files are looked at
            stack.enter_context(work_dir_lock(work_dir, args.launcher))
        path, checkpoint = _to_resume(cfg, args, work_dir)
        if not work_dir.is_dir():
            stack.enter_context(work_dir_lock(work_dir, args.launcher))
        _run(cfg, args, console, path, checkpoint)


def _to_resume(cfg: Config, args: argparse.Namespace, work_dir: Path) -> tuple[Path | str, dict[str, Any] | None]:
    """The checkpoint to go on from, and its content; None for a new run."""
    path: Path | str = work_dir
    checkpoint = None
    if args.resume:
        if args.resume == LATEST:
            path, checkpoint, passed = newest_whole(newest_first(work_dir, checkpoint_folder(cfg, work_dir)))
            for each in passed:
                print_log(f"--resume passes over a file: {each}", logger="current", level=logging.WARNING)
            if passed:
                print_log(f"--resume takes {path}", logger="current")
        else:
            path = args.resume if "://" in args.resume else Path(args.resume)
            checkpoint = read(path)
        check_resumable(checkpoint, path, cfg.train_cfg, work_dir)
        # Before anything is built: MMEngine itself goes back to the first run's seed when the sampler has another.
        resume_seed(cfg, checkpoint["meta"].get("seed"), args.seed)
        cfg.load_from, cfg.resume = str(path), True
        allow_mmengine_checkpoints()
    elif found := checkpoints_in(work_dir):
        raise UserError(
            f"{work_dir} already holds {found[-1].name} of an earlier run: "
            "continue it with --resume, or start another with --work-dir"
        )
    return path, checkpoint


def _run(
    cfg: Config, args: argparse.Namespace, console: Console, path: Path | str, checkpoint: dict[str, Any] | None
) -> None:
    set_launcher(cfg, args.launcher)
    without_workers(cfg)
    with registry_errors(args.config), lone_values():
        runner = console.runner(cfg, Trainer)
        if not any(isinstance(hook, PlainCheckpointHook) for hook in runner.hooks):
            runner.register_hook(PlainCheckpointHook())
        keep_going(runner)
        if not args.skip_checks:
            runner.register_hook(FeasibleHook())
        if checkpoint is not None:
            check_fits(unwrapped(runner), model_weights(checkpoint, path).state, path)
        check_rules(cfg, unwrapped(runner))
        if args.compile:
            runner.register_hook(CompilingHook(compile_backbones(unwrapped(runner))))
        runner.train()


CHECKPOINT_HOOKS = (
    "CheckpointHook",
    "mmengine.CheckpointHook",
    "mmengine.hooks.CheckpointHook",
    "mmengine.hooks.checkpoint_hook.CheckpointHook",
)
"""How a config names MMEngine's own hook."""


def use_atomic_checkpoints(cfg: Config) -> None:
    """Put our hook in the place of MMEngine's own, with its options. A user's own class stays, and so does None."""
    if cfg.get("default_hooks") is None:
        cfg.default_hooks = {}
    cfg.default_hooks.setdefault("checkpoint", {"type": "CheckpointHook", "interval": 1})  # as MMEngine has it
    for hook in (cfg.default_hooks.checkpoint, *(cfg.get("custom_hooks") or ())):
        kind = hook.get("type") if isinstance(hook, MutableMapping) else None
        by_name = isinstance(kind, str) and kind in CHECKPOINT_HOOKS and HOOKS.get("CheckpointHook") is CheckpointHook
        if by_name or kind is CheckpointHook:
            hook["type"] = "mm_vitbackbones.AtomicCheckpointHook"


def checkpoint_folder(cfg: Config, work_dir: Path) -> Path | None:
    """Where a run's checkpoints go, if its hook has a local folder for them that is not the work dir."""
    hook = (cfg.get("default_hooks") or {}).get("checkpoint")
    out_dir = hook.get("out_dir") if isinstance(hook, Mapping) else None
    return None if not out_dir or "://" in str(out_dir) else Path(out_dir, work_dir.absolute().name)


def check_resumable(
    checkpoint: dict[str, Any], path: Path | str, train_cfg: dict[str, Any], work_dir: Path | None = None
) -> None:
    """Check that a checkpoint holds the state of a training run that is not over.

    Args:
        work_dir: of the run; where its last evaluation is missing, the run is not over.
    """
    if not holds_training(checkpoint):
        raise UserError(
            f"{path} holds weights alone, not the state of a training run: "
            "to start from its weights give --cfg-options load_from=FILE instead of --resume"
        )
    check_state(checkpoint, path)
    meta, units = checkpoint["meta"], {unit for unit in ("epoch", "iter") if train_cfg.get(f"max_{unit}s")}
    by_epoch = trained_by_epoch(meta)
    if by_epoch is not None and units == {"iter" if by_epoch else "epoch"}:
        was, now = ("epochs", "iterations") if by_epoch else ("iterations", "epochs")
        raise UserError(
            f"{path} is of a training by {was} (epoch {meta.get('epoch')}, iteration {meta.get('iter')}), and the "
            f"config trains by {now}: resume with a config by {was}, or start from its weights with load_from"
        )
    if work_dir is not None and meta.get(EVALUATION) and evaluation_is_due(work_dir, meta.get("iter", 0)):
        return
    for unit in ("epoch", "iter"):
        last = train_cfg.get(f"max_{unit}s")
        if last and checkpoint["meta"].get(unit, 0) >= last:
            raise UserError(
                f"nothing left to resume: {path} is at {unit} {checkpoint['meta'][unit]} of {last}; "
                f"to go on longer raise train_cfg.max_{unit}s with --cfg-options"
            )


def resume_seed(cfg: Config, before: int | None, wanted: int | None) -> None:
    """Use the seed of the run that is resumed."""
    if before is None:
        return
    if wanted not in (None, before):
        raise UserError(f"--seed {wanted}: the run to resume has the seed {before}; leave --seed out")
    set_seed(cfg, before)


def set_seed(cfg: Config, seed: int) -> None:
    cfg.randomness = {**(cfg.get("randomness") or {}), "seed": seed}
