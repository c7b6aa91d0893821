"""Batches and the workers that load them: what PyTorch refuses, before a run begins."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mm_vitbackbones.cli.datasets import datasets_of
from mm_vitbackbones.cli.model import build_model
from mm_vitbackbones.cli.preflight import SKIP
from mm_vitbackbones.engine.schedules import batch_size, warn_of_low_rate
from mm_vitbackbones.engine.summary import unwrapped
from mm_vitbackbones.errors import UserError, shorten
from mm_vitbackbones.nodes import nodes, type_name

FOR_WORKERS = {"persistent_workers": False, "prefetch_factor": None, "multiprocessing_context": None}
"""Options of a dataloader that PyTorch refuses without workers, with the values that it takes."""

REFUSAL = "Expected more than 1 value per channel when training"
"""The beginning of PyTorch's error for a batch norm of one value."""


class FeasibleHook(Hook):
    """Before training: refuses what would end it with an error of PyTorch or MMEngine, be it after hours, and warns of
    a schedule that does not fit the length of the run."""

    def before_run(self, runner: Runner) -> None:
        try:
            check_one_cycle(runner)
            check_lone_images(runner)
        except UserError as error:
            raise UserError(f"{error} ({SKIP})") from None
        warn_of_low_rate(runner)


def check_one_cycle(runner: Runner) -> None:
    """Check that no one-cycle schedule is shorter than the training."""
    given = runner.param_schedulers or []
    for scheduler in itertools.chain(*given.values()) if isinstance(given, dict) else given:
        planned = runner.max_epochs if scheduler.by_epoch else runner.max_iters
        steps = getattr(scheduler, "total_steps", None)
        if steps is not None and min(scheduler.end - 1, planned) - scheduler.begin > steps:
            raise UserError(
                f"param_scheduler: {type(scheduler).__name__} has total_steps={steps}, and the training goes on after "
                f"it, to {planned}: set total_steps={planned - scheduler.begin}, or end={scheduler.begin + steps}"
            )


def without_workers(cfg: Config) -> None:
    """Leave out the options for workers of dataloaders with ``num_workers=0``, which PyTorch refuses there."""
    for split in ("train", "val", "test"):
        loader = cfg.get(f"{split}_dataloader")
        if not loader or loader.get("num_workers", 0):
            continue
        found = [name for name, neutral in FOR_WORKERS.items() if loader.get(name) not in (None, neutral)]
        for name in found:
            del loader[name]
        if found:
            print_log(f"{split}_dataloader has num_workers=0: {', '.join(found)} are left out", logger="current")


def check_lone_images(runner: Runner) -> None:
    """Check that no batch of one image gives a batch norm a map of one pixel, as in a pooled branch, which PyTorch
    refuses to normalise."""
    loader = runner.train_loop.dataloader
    images, last = batch_size(loader), last_batch(loader)
    if 1 not in (images, last):
        return
    model = unwrapped(runner.model).train()
    norms = {
        name
        for name, part in model.named_modules()
        if isinstance(part, _BatchNorm) and part.training and not isinstance(part, nn.SyncBatchNorm)
    }
    if norms and (found := [name for name in lone_norms(runner.cfg) if name in norms]):
        raise UserError(_advice(shorten(found, 2), images, runner.world_size))


def _advice(where: str, images: int | None, processes: int) -> str:
    what = "train_dataloader.batch_size=1" if images == 1 else f"the last batch of an epoch (batch_size={images})"
    remedy = "at least 2" if images == 1 else "another, or train_dataloader.drop_last=True"
    norm = "norm_cfg type SyncBN or GN" if processes > 1 and torch.cuda.is_available() else "norm_cfg type GN"
    return (
        f"{what} gives one image, of which {where} would normalise a single value per channel, which PyTorch refuses "
        f"in training: set batch_size to {remedy}, or the head's {norm}"
    )


def last_batch(loader: Any) -> int | None:
    """Images in the last batch of an epoch of this process; None if it is not known or if no batch is the last."""
    sampler, batches, images = loader.sampler, getattr(loader, "batch_sampler", None), batch_size(loader)
    if not images or isinstance(sampler, InfiniteSampler) or getattr(batches, "drop_last", False):
        return None
    try:
        return len(sampler) % images or images
    except TypeError:  # a stream
        return None


def lone_norms(cfg: Config) -> list[str]:
    """The batch norms of a model that get a single value per channel in a training step of one image.

    The model is built and run without memory, up to the maps of its heads. What cannot be run so is left out.
    """
    if (size := largest_image(cfg)) is None:
        return []
    try:
        model = build_model(copy.deepcopy(cfg), "meta").train()
    except Exception:  # the run itself reports it
        return []
    image = torch.zeros(1, cfg.model.backbone.get("in_channels", 3), *size, device="meta")
    found: list[str] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if module.training and inputs[0].numel() == inputs[0].shape[1]:
                found.append(name)
                module.eval()  # to go on

        return hook

    for name, part in model.named_modules():
        if isinstance(part, _BatchNorm):
            part.register_forward_pre_hook(note(name))
    for step in _steps(model, image):
        try:
            step()
        except Exception:
            continue
    return found


SAME_SIZE = ("Load", "Pack", "RandomFlip", "PhotoMetricDistortion", "FilterAnnotations")
"""Beginnings of the names of transforms that leave an image's size."""


def largest_image(cfg: Config) -> tuple[int, int] | None:
    """Height and width of the largest images that a training step of the config sees; None if it does not say."""
    sizes = [_largest(dataset.get("pipeline") or []) for dataset in datasets_of(cfg.train_dataloader)]
    wrappers = [node for _, node in nodes(cfg.train_dataloader, "") if isinstance(node, Mapping) and "dataset" in node]
    mixed = any("pipeline" in wrapper for wrapper in wrappers)  # mosaics and the like
    found = [size for size in sizes if size is not None]
    if mixed or not sizes or len(found) < len(sizes):
        return None
    preprocessor = cfg.model.get("data_preprocessor") or {}
    padded = preprocessor.get("size") or (0, 0)
    divisor = preprocessor.get("pad_size_divisor") or 1
    height, width = (max(sides) for sides in zip(*found, padded, strict=True))
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def _largest(pipeline: Sequence[Mapping[str, Any]]) -> tuple[int, int] | None:
    size: tuple[int, int] | None = None
    for step in pipeline:
        kind = type_name(step)
        if kind in ("Resize", "RandomResize", "RandomChoiceResize"):
            scales = step.get("scales") or step.get("scale") or []
            scales = scales if scales and _is_pair(scales[0]) else [scales]
            if not all(_is_pair(scale) for scale in scales):
                return None
            ratio = max(step.get("ratio_range") or (1, 1))
            size = max(((round(max(s) * ratio), round(min(s) * ratio)) for s in scales), key=math.prod)
        elif kind == "RandomCrop" and size and step.get("crop_type", "absolute") == "absolute":
            crop = step["crop_size"]
            height, width = crop if _is_pair(crop) else (crop, crop)
            size = (min(height, size[0]), min(width, size[0]))  # of either orientation
        elif not kind.startswith(SAME_SIZE):
            return None
    return size


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and not isinstance(value[0], (list, tuple))


def _steps(model: Any, image: Tensor) -> Iterator[Any]:
    """Runs of a model's heads on the features of an image."""
    with torch.no_grad():
        try:
            maps = model.extract_feat(image)
        except Exception:
            return
        outputs: list[Any] = []

        def run(head: Any, *earlier: Any) -> Any:
            return lambda: outputs.append(head.forward(maps, *earlier))

        for head in _modules(getattr(model, "decode_head", None)):  # a cascade's take what the one before them gives
            yield run(head, *outputs[-1:])
        for name in ("auxiliary_head", "bbox_head", "mask_head", "rpn_head"):
            for head in _modules(getattr(model, name, None)):
                yield run(head)


def _modules(part: Any) -> Iterable[nn.Module]:
    if isinstance(part, nn.ModuleList):
        return part
    return [part] if isinstance(part, nn.Module) else []


@contextmanager
def lone_values() -> Iterator[None]:
    """Report in one line PyTorch's refusal of a batch norm over one value, where it could not be foreseen."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith(REFUSAL):
            raise
        raise UserError(
            "a batch norm of the model got a single value per channel, which PyTorch refuses in training: set "
            "train_dataloader.batch_size to at least 2, train_dataloader.drop_last=True, or norm_cfg type GN"
        ) from None
