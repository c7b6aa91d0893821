"""Training runs of a few numbers in this process, for what a run keeps, resumes and reports."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import METRICS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn

from mm_vitbackbones.cli.weights import Trainer
from mm_vitbackbones.engine.hooks import PlainCheckpointHook

_COUNT = itertools.count()


class ToyModel(BaseModel):
    """A backbone and a head of one linear map each."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)), nn.Linear(3, 1)

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
        found = self.head(self.backbone(torch.stack([*inputs])))
        return {"loss": (found - 1).square().mean()} if mode == "loss" else found


class ToyData(torch.utils.data.Dataset):
    """Eight pairs of numbers."""

    def __init__(self) -> None:
        self.metainfo = {"classes": ("one", "two"), "palette": [(1, 2, 3), (4, 5, 6)]}

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return {"inputs": torch.tensor([index / 8, 1.0])}


def toy_config(**changes: Any) -> Config:
    """Four epochs of four iterations; ``changes`` replace entries, those with dots entries of entries."""
    cfg = Config(
        dict(
            default_scope="mmengine",
            train_dataloader=dict(batch_size=2, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=True)),
            train_cfg=dict(by_epoch=True, max_epochs=4),
            optim_wrapper=dict(optimizer=dict(type="AdamW", lr=0.01, weight_decay=0.05)),
            param_scheduler=[dict(type="CosineAnnealingLR", by_epoch=True)],
            default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=1)),
            custom_hooks=[],
            randomness=dict(seed=0),
        )
    )
    cfg.merge_from_dict({key.replace("__", "."): copy.deepcopy(value) for key, value in changes.items()})
    if "max_iters" in cfg.train_cfg:
        cfg.train_dataloader.sampler.type = "InfiniteSampler"  # MMEngine waits 2 s at the end of each epoch of another
    return cfg


def toy_runner(cfg: Config, work_dir: Path, kind: type[Runner] = Trainer, **options: Any) -> Any:
    """A runner for a toy config. Its checkpoints are plain data."""
    if "train_dataloader" in cfg:
        cfg.train_dataloader.dataset = ToyData()
    model = options.pop("model", None) or ToyModel()
    runner = kind(
        model=model,
        work_dir=str(work_dir),
        cfg=Config(dict(model=dict(type="Toy"))),
        experiment_name=f"toy{next(_COUNT)}",
        log_level="ERROR",
        **{key: cfg[key] for key in cfg if key != "randomness"},
        randomness=dict(cfg.randomness),
        **options,
    )
    runner.register_hook(PlainCheckpointHook())
    return runner


@METRICS.register_module()
class ToyMetric(BaseMetric):
    """The number of data items."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results += [1] * len(data_samples)

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        return {"count": float(len(results))}


def toy_evaluation(split: str) -> dict[str, Any]:
    """What a runner needs for a validation or a test."""
    loader = dict(batch_size=2, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False), dataset=ToyData())
    return {f"{split}_dataloader": loader, f"{split}_cfg": {}, f"{split}_evaluator": dict(type="ToyMetric")}


class Stopped(Exception):
    """A run was ended on purpose."""


class StopHook(Hook):
    """Ends a run after this epoch, or before it trains."""

    priority = "LOWEST"  # after the checkpoint is saved

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def before_train(self, runner: Any) -> None:
        if self.epoch == 0:
            raise Stopped

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if isinstance(runner.train_loop, IterBasedTrainLoop) and runner.iter + 1 == 4 * self.epoch:
            raise Stopped

    def after_train_epoch(self, runner: Any) -> None:
        if runner.epoch + 1 == self.epoch:
            raise Stopped


@contextmanager
def logged(runner: Any) -> Iterator[list[str]]:
    """The messages that a runner logs meanwhile."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Keep()
    runner.logger.addHandler(handler)
    level, runner.logger.level = runner.logger.level, logging.INFO
    try:
        yield lines
    finally:
        runner.logger.level = level
        runner.logger.removeHandler(handler)
