"""A summary of a run, in a few lines before it begins."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from torch import nn

from mm_vitbackbones import adapters
from mm_vitbackbones.errors import counted, shorten
from mm_vitbackbones.nodes import is_pretrained


class SummaryHook(Hook):
    """Logs the network, its weights, the data, the schedule, the device, and where the log file is."""

    def before_run(self, runner: Runner) -> None:
        for line in summary(runner):
            runner.logger.info(line)


def summary(runner: Runner) -> Iterator[str]:
    """The lines of the summary. The runner is built; its weights are not loaded yet."""
    loops = {split: getattr(runner, f"_{split}_loop") for split in ("train", "val", "test")}
    built = {split: loop for split, loop in loops.items() if isinstance(loop, BaseLoop)}
    model, config = unwrapped(runner.model), runner.cfg.model
    while isinstance(inner := config.get("module"), Mapping):  # test-time augmentation
        config = inner
    yield f"network: {describe_model(model, config)}"
    if "train" in built:
        yield f"weights: {describe_weights(runner)}"
    for split, loop in built.items():
        yield f"{split} data: {describe_data(loop.dataloader.dataset)}"
    if "train" in built:
        yield f"schedule: {describe_schedule(built)}"
        yield f"optimizer: {describe_optimizer(runner.optim_wrapper)}"
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    yield f"device: {describe_device(device)}"
    if path := log_file(runner.logger):
        yield f"log: {path}"


def unwrapped(model: nn.Module) -> nn.Module:
    """A model, without the wrappers of distributed runs and of test-time augmentation."""
    while isinstance(inner := getattr(model, "module", None), nn.Module):
        model = inner
    return model


def describe_model(model: nn.Module, config: Mapping[str, Any]) -> str:
    """Such as ``RetinaNet, backbone PVTv2 b0, 7.1 M parameters (3.4 M of the backbone)``."""
    text = type(model).__name__
    if isinstance(head := getattr(model, "decode_head", None), nn.Module):
        text += f" with {type(head).__name__}"
    parts = []
    if isinstance(backbone := getattr(model, "backbone", None), nn.Module):
        arch = (config.get("backbone") or {}).get("arch")
        text += f", backbone {type(backbone).__name__}" + (f" {arch}" if isinstance(arch, str) else "")
        if adapters.summary(state := backbone.state_dict()):
            text += f" with {adapters.described(state)}"
        parts.append(f"{_count(backbone.parameters())} of the backbone")
    if frozen := [parameter for parameter in model.parameters() if not parameter.requires_grad]:
        parts.append(f"{_count(frozen)} frozen")
    return f"{text}, {_count(model.parameters())} parameters" + (f" ({', '.join(parts)})" if parts else "")


def describe_weights(runner: Runner) -> str:
    """What a training starts from. The loader logs what it took from the files."""
    cfg = runner.cfg
    if cfg.get("resume"):
        return f"of {cfg.get('load_from') or 'the latest checkpoint in the work dir'}, which is resumed"
    if cfg.get("load_from"):
        return f"of {cfg.load_from}"
    files = [*_pretrained(cfg.model, "model")]
    return "; ".join(f"{where.removeprefix('model.')} from {file}" for where, file in files) or "random"


def _pretrained(node: Any, where: str) -> Iterator[tuple[str, str]]:
    """The parts of a model's config that start from a file, and the files."""
    if not isinstance(node, Mapping):
        return
    given = node.get("init_cfg") or []
    for each in given if isinstance(given, (list, tuple)) else [given]:
        if is_pretrained(each):
            yield where, str(each.get("checkpoint"))
    for key, value in node.items():
        if key != "init_cfg":
            for inner in value if isinstance(value, (list, tuple)) else [value]:
                yield from _pretrained(inner, f"{where}.{key}")


def describe_data(dataset: Any) -> str:
    """Such as ``CocoDataset, 42 images (168 with repeats), 1 class (tree)``."""
    inner = dataset
    while hasattr(inner, "dataset"):
        inner = inner.dataset
    text = type(inner).__name__
    if hasattr(inner, "__len__"):  # a stream has no length
        text += f", {counted(len(inner), 'image')}"
        if len(inner) != len(dataset):
            text += f" ({len(dataset):,} with repeats)"
    classes = (getattr(dataset, "metainfo", None) or {}).get("classes")
    if classes:
        text += f", {counted(len(classes), 'class', 'classes')} ({shorten([*map(str, classes)], 6)})"
    return text


def describe_schedule(loops: Mapping[str, Any]) -> str:
    """Such as ``12 epochs of 84 iterations, batch 2, evaluated every epoch``."""
    loop = loops["train"]
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    text = counted(len(loop.dataloader) if by_epoch else loop.max_iters, "iteration")
    if by_epoch:
        text = f"{counted(loop.max_epochs, 'epoch')} of {text}"
    batch, processes = getattr(loop.dataloader, "batch_size", None), get_world_size()
    if batch is None:  # a batch sampler of its own
        batch = getattr(getattr(loop.dataloader, "batch_sampler", None), "batch_size", None)
    if batch:
        text += f", batch {batch * processes}" + (f" ({batch} in each of {processes} processes)" * (processes > 1))
    if "val" in loops:
        every = counted(loop.val_interval, "epoch" if by_epoch else "iteration")
        text += f", evaluated every {every.removeprefix('1 ')}"
    return text


def describe_optimizer(wrapper: Any) -> str:
    """Such as ``AdamW, learning rate 0.0001, weight decay 0.05, fp32``."""
    if not hasattr(wrapper, "optimizer"):  # several, each with a wrapper of its own
        return "; ".join(f"{name}: {describe_optimizer(one)}" for name, one in wrapper.items())
    groups = wrapper.optimizer.param_groups
    text = type(wrapper.optimizer).__name__
    # A warm-up has lowered `lr` already.
    text += f", learning rate {_range([group.get('initial_lr', group['lr']) for group in groups])}"
    if decays := [group["weight_decay"] for group in groups if "weight_decay" in group]:
        text += f", weight decay {_range(decays)}"
    if (count := getattr(wrapper, "_accumulative_counts", 1)) > 1:
        text += f", gradients of {count} batches together"
    return f"{text}, {_precision(wrapper)}"


def _precision(wrapper: Any) -> str:
    kind = type(wrapper).__name__
    if kind == "AmpOptimWrapper":
        dtype = getattr(wrapper, "cast_dtype", None)
        return "AMP" + (f" in {str(dtype).removeprefix('torch.')}" if dtype else "")
    return {"OptimWrapper": "fp32", "BFloat16OptimWrapper": "AMP in bfloat16"}.get(kind, kind)


def describe_device(device: torch.device) -> str:
    """Such as ``CPU, 2 threads`` or ``NVIDIA H100, 8 processes``."""
    processes = get_world_size()
    text = f"{torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type.upper()
    if device.type == "cpu":
        text += f", {counted(torch.get_num_threads(), 'thread')}"
    return text + (f", {processes} processes" * (processes > 1))


def _count(parameters: Iterable[nn.Parameter]) -> str:
    count = sum(parameter.numel() for parameter in parameters)
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"


def _range(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{high:g}" if low == high else f"{low:g} to {high:g}"


def log_file(logger: logging.Logger) -> Path | None:
    """The file that a logger writes, relative to the current folder; None if it writes to a console only."""
    path = next((Path(h.baseFilename) for h in logger.handlers if isinstance(h, logging.FileHandler)), None)
    return path.relative_to(Path.cwd()) if path and path.is_relative_to(Path.cwd()) else path
