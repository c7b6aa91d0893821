"""One training step and one test step of a config on noise: whether it runs, and the memory that it takes."""

from __future__ import annotations

import argparse
import logging
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from mm_vitbackbones import libraries
from mm_vitbackbones.backbones.base import Backbone
from mm_vitbackbones.cli.arguments import Parser, add_options, config_file
from mm_vitbackbones.cli.config import load_config
from mm_vitbackbones.cli.datasets import datasets_of
from mm_vitbackbones.cli.launch import registry_errors
from mm_vitbackbones.cli.model import build_model
from mm_vitbackbones.cli.preflight import check_backbone, check_optimizer
from mm_vitbackbones.engine.console import HARMLESS
from mm_vitbackbones.errors import CheckpointError, UserError
from mm_vitbackbones.measuring import peak_bytes
from mm_vitbackbones.nodes import heads, type_name
from mm_vitbackbones.printing import print

OBJECTS = 7
"""Objects in each image for a detector. An image of COCO has as many on average."""


@dataclass(frozen=True)
class Trial:
    """The results of a config's two steps."""

    size: tuple[int, int]
    """Height and width of the images, before padding."""
    images: int
    """In the training step; the test step has one."""
    losses: Mapping[str, float]
    unreached: tuple[str, ...]
    """Trainable parameters that got no gradient."""
    training_bytes: int
    """Peak of weights, gradients, the optimizer's state and activations."""
    test_bytes: int
    """Peak of weights and activations."""
    result: Any
    """The data sample of the test step."""


def try_config(cfg: Config, size: tuple[int, int] | None = None, images: int | None = None) -> Trial:
    """Run a training step and a test step of a config on the CPU, from random weights.

    Args:
        cfg: of a detector or a segmentor.
        size: height and width of the images; by default those of the config's crops, or the size it resizes to.
        images: number of images in the training step; by default the config's batch for one process.
    """
    if missing := [part for part in ("train_dataloader", "optim_wrapper") if cfg.get(part) is None]:
        raise UserError(f"the config says nothing about training: it needs {' and '.join(missing)}")
    size, scope = size or image_size(cfg), libraries.scope_of(cfg)
    images = images or cfg.train_dataloader.batch_size
    with _quiet():
        model = build_model(cfg)
        model.init_weights()
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    if getattr(model.data_preprocessor, "size", None) is not None:
        model.data_preprocessor.size = size  # mmseg pads a batch to the size of the crops
    classes = max((head["num_classes"] for _, head in heads(cfg.model)), default=1)
    backbone = getattr(model, "backbone", None)
    channels = backbone.in_channels if isinstance(backbone, Backbone) else 3
    draw = _draw_segments if scope == "mmseg" else _draw_objects
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    outcome: dict[str, Any] = {}

    def train() -> None:
        outcome.update(losses=model.train_step(_batch(draw, images, (channels, *size), classes), wrapper))

    def test() -> None:
        outcome.update(result=model.test_step(_batch(draw, 1, (channels, *size), classes))[0])

    with DefaultScope.overwrite_default_scope(scope):
        training_bytes = weights + peak_bytes(train)
        reached = wrapper.optimizer.state
        unreached = [name for name, p in model.named_parameters() if p.requires_grad and p not in reached]
        wrapper.optimizer.state.clear()
        model.eval()
        test_bytes = weights + peak_bytes(test)
    losses = {name: torch.as_tensor(value).detach().item() for name, value in outcome["losses"].items()}
    return Trial(size, images, losses, tuple(unreached), training_bytes, test_bytes, outcome["result"])


def image_size(cfg: Config) -> tuple[int, int]:
    """Height and width of what a config trains on: its crops, or its images as they are resized for a test."""
    if crop := cfg.get("crop_size"):
        return (int(crop[0]), int(crop[1]))
    for dataset in datasets_of(cfg.get("test_dataloader")):
        for step in dataset["pipeline"]:
            if type_name(step).endswith("Resize") and "scale" in step:
                width, height = step["scale"]
                return int(height), int(width)
    raise UserError("the config does not say to what size it resizes images: give --size HEIGHT WIDTH")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence MMEngine, which logs each parameter's initialisation and each rule of the optimizer."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel("WARNING")
    logger.addFilter(_is_for_users)
    try:
        yield
    finally:
        logger.removeFilter(_is_for_users)
        logger.setLevel(level)


def _is_for_users(record: logging.LogRecord) -> bool:
    return not HARMLESS.search(record.getMessage())


def _batch(draw: Any, images: int, shape: tuple[int, int, int], classes: int) -> dict[str, list[Any]]:
    """A batch of noise, in the form that the libraries' dataloaders return; ``shape`` is (channels, height, width)."""
    size = shape[1:]
    rng = np.random.default_rng(0)
    inputs = [torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8)) for _ in range(images)]
    meta = {"img_shape": size, "ori_shape": size, "scale_factor": (1.0, 1.0)}
    return {"inputs": inputs, "data_samples": [draw(rng, size, classes, meta) for _ in range(images)]}


def _draw_objects(rng: np.random.Generator, size: tuple[int, int], classes: int, meta: dict[str, Any]) -> Any:
    """Boxes from a tenth to a half of the image's sides, and masks that fill them."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    sides = np.array([size[1], size[0]])
    extent = rng.uniform(0.1, 0.5, (OBJECTS, 2)) * sides
    corner = rng.uniform(0, 1, (OBJECTS, 2)) * (sides - extent)
    boxes = np.concatenate([corner, corner + extent], axis=1).astype(np.float32)
    masks = np.zeros((OBJECTS, *size), dtype=np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[y1:y2, x1:x2] = 1
    objects = InstanceData(
        bboxes=torch.from_numpy(boxes),
        labels=torch.from_numpy(rng.integers(0, classes, OBJECTS)),
        masks=BitmapMasks(masks, *size),
    )
    return DetDataSample(metainfo=meta, gt_instances=objects)


def _draw_segments(rng: np.random.Generator, size: tuple[int, int], classes: int, meta: dict[str, Any]) -> Any:
    from mmseg.structures import SegDataSample

    labels: Tensor = torch.from_numpy(rng.integers(0, classes, (1, *size)))
    return SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=labels))


def main(argv: list[str]) -> None:
    """tools/try_config.py. See ``try_arguments`` for the command line."""
    args = try_arguments(argv)
    size = (args.size[0], args.size[-1]) if args.size else None
    print("| config | image | training: images | training: GiB | testing: GiB | loss |")
    print("| --- | --- | --- | --- | --- | --- |")
    for path in args.configs:
        cfg = load_config(path, args.cfg_options)
        libraries.use(libraries.scope_of(cfg))
        check_backbone(cfg.model)
        check_optimizer(cfg)
        with _what_does_not_run(path), registry_errors(path):
            trial = try_config(cfg, size, args.images)
        memory = f"{trial.training_bytes / 2**30:.2f} | {trial.test_bytes / 2**30:.2f}"
        height, width = trial.size
        print(
            f"| {path.stem} | {height}x{width} | {trial.images} | {memory} | {trial.losses['loss']:.2f} |", flush=True
        )


@contextmanager
def _what_does_not_run(path: Path) -> Iterator[None]:
    """Report in one line what a config's parts raise, and where: parts that do not fit each other raise anything."""
    try:
        yield
    except (UserError, CheckpointError):
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        raise UserError(f"{path} does not run: {type(error).__name__} in {where}: {str(error)[:300]}") from None


def try_arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="try_config.py",
        description="Run a training step and a test step of configs on noise, on the CPU, without data or pretrained "
        "weights: whether they run, and the memory that they take.",
    )
    parser.add_argument("configs", type=config_file, nargs="+", metavar="CONFIG", help="recipes by name, or paths")
    parser.add_argument(
        "--size", type=int, nargs="+", metavar="SIDE", help="height and width of the images (the config's)"
    )
    parser.add_argument("--images", type=int, metavar="COUNT", help="images of the training step (the config's batch)")
    add_options(parser)
    args = parser.parse_args(argv)
    if args.size and (len(args.size) > 2 or min(args.size) < 1):
        raise UserError("--size takes a height and a width in pixels, or one number for both")
    if args.images is not None and args.images < 1:
        raise UserError(f"--images takes a number from 1, not {args.images}")
    return args
