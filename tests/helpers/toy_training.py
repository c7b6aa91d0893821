"""A training of a few numbers for tools/train.py, in processes that end at a certain point. Configs import this module.

The environment variable ``END_AT`` says where: ``"writing:2"`` is while the second checkpoint is being written.
``KILL_AFTER`` is a number of seconds after its start, when the process is killed.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from torch import nn

from helpers.toy_runs import ToyData, ToyModel
from mm_vitbackbones.engine import saving
from mm_vitbackbones.files import write_whole

CONFIG = """
custom_imports = dict(imports=["helpers.toy_training"])
default_scope = "mmengine"
env_cfg = dict(dist_cfg=dict(backend="gloo"))
model = dict(type="NumbersModel")
train_dataloader = dict(
    batch_size=2, num_workers=WORKERS, sampler=dict(type="DefaultSampler", shuffle=True), dataset=dict(type="Numbers"))
val_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False), dataset=dict(type="Numbers"))
train_cfg = dict(by_epoch=True, max_epochs=4, val_interval=1)
val_cfg = dict()
val_evaluator = dict(type="NumbersMetric")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=0.01, weight_decay=0.05))
param_scheduler = [dict(type="CosineAnnealingLR", by_epoch=True, T_max=4), dict(type="LinearLR", by_epoch=False, end=9)]
default_hooks = dict(
    logger=dict(type="LoggerHook", interval=2),
    checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=1, save_best="acc"),
    epoch_seed=dict(type="mm_vitbackbones.EpochSeedHook"))
custom_hooks = [dict(type="EMAHook", momentum=0.1), dict(type="EndHook", priority="HIGHEST")]
vis_backends = [dict(type="LocalVisBackend")]
visualizer = dict(type="Visualizer", vis_backends=vis_backends, name="numbers")
randomness = dict(seed=0)
"""
BY_ITERATION = """
_base_ = "toy.py"
train_dataloader = dict(num_workers=1, sampler=dict(type="InfiniteSampler"))
train_cfg = dict(_delete_=True, by_epoch=False, max_iters=16, val_interval=4)
default_hooks = dict(logger=dict(log_metric_by_epoch=False), checkpoint=dict(interval=4, by_epoch=False))
log_processor = dict(by_epoch=False)
"""


@MODELS.register_module()
class NumbersModel(ToyModel):
    """The toy with dropout: the weights depend on every random number."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone[1] = nn.Dropout(0.3)


@DATASETS.register_module()
class Numbers(ToyData):
    """The toy's pairs of numbers, with noise as an augmentation."""

    def __getitem__(self, index: int) -> Any:
        return {"inputs": super().__getitem__(index)["inputs"] + 0.1 * torch.rand(2)}


@METRICS.register_module()
class NumbersMetric(BaseMetric):
    """A score that the training improves."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        reach("validating")
        self.results += [-((float(each) - 1) ** 2) for each in data_samples]

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        return {"acc": sum(results) / len(results)}


@HOOKS.register_module()
class EndHook(Hook):
    """The point ``training``: before an iteration; and slow iterations, for kills at random times."""

    def before_run(self, runner: Any) -> None:
        if "KILL_AFTER" in os.environ and os.environ.get("KILL_RANK", "all") in ("all", str(runner.rank)):
            _kill_later(float(os.environ["KILL_AFTER"]))

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        reach("training")
        if "KILL_AFTER" in os.environ:
            write_whole(Path(runner.work_dir, f"reached_{runner.rank}"), f"{runner.iter}".encode())
            time.sleep(0.01)


_COUNTS: dict[str, int] = {}


def reach(point: str) -> bool:
    """The process is at a point: it ends here if ``END_AT`` says so. Returns whether a disk is to be full here."""
    _COUNTS[point] = _COUNTS.get(point, 0) + 1
    what, _, rest = os.environ.get("END_AT", "").partition(" ")
    if what != f"{point}:{_COUNTS[point]}" or os.environ.get("END_RANK", "0") != os.environ.get("RANK", "0"):
        return False
    if rest == "full":
        return True
    processes = [os.getpid(), *(each.pid for each in multiprocessing.active_children())]
    for name in rest.split(",") if rest else ["SIGKILL"]:  # to all processes, from another one, as slurm does
        subprocess.run(["kill", "-s", name.removeprefix("SIG"), *map(str, processes)], check=True)
    return False


_put, _settle, _remove = LocalBackend.put, saving.settle, saving.AtomicCheckpointHook._remove


def _slow_put(self: Any, obj: bytes, filepath: Any) -> None:
    """A disk that is slow, or full at a certain file."""
    middle = len(obj) // 2
    with open(filepath, "wb", buffering=0) as file:
        file.write(obj[:middle])
        if reach("writing"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if "KILL_AFTER" in os.environ:
            time.sleep(0.05)
        file.write(obj[middle:])


def _settle_and_reach(partial: Path, path: Path) -> None:
    reach("written")
    _settle(partial, path)
    reach("renamed")


def _reach_and_remove(self: Any, runner: Any, name: str) -> None:
    if self.file_backend.isfile(self.file_backend.join_path(self.out_dir, name)):
        reach("noted")
    _remove(self, runner, name)


def _kill_later(seconds: float) -> None:
    """Have another process kill this one: a thread that wakes while the interpreter ends can abort it."""
    here = os.getpid()
    if os.fork() == 0:
        time.sleep(seconds)
        if os.getppid() == here:
            os.kill(here, signal.SIGKILL)
        os._exit(0)


if {"END_AT", "KILL_AFTER"} & os.environ.keys():  # not in the process of the tests
    LocalBackend.put = _slow_put
    saving.settle = _settle_and_reach
    saving.AtomicCheckpointHook._remove = _reach_and_remove
