"""The command lines of the tools that take a config."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from mmengine.config import DictAction

from mm_vitbackbones.engine.errors import Parser, UserError

LATEST = "latest"
"""What a bare ``--resume`` stands for."""


class _Options(DictAction):
    """MMEngine's ``key=value`` options, with an error that can be read."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        for option in values:
            if not option.partition("=")[0] or "=" not in option:
                raise UserError(f"--cfg-options takes key=value, such as train_cfg.max_epochs=6, and not {option!r}")
            if option.count("(") != option.count(")") or option.count("[") != option.count("]"):
                raise UserError(f"--cfg-options {option!r}: the brackets do not match")
        super().__call__(parser, namespace, values, option_string)


def train_arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="train.py", description="Train a detector or a segmenter from an mmdet or mmseg config.")
    _add_common(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const=LATEST,
        metavar="CHECKPOINT",
        help="go on from this checkpoint; without a value, from the latest one in the work dir",
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
        "--auto-scale-lr", action="store_true", help="scale the learning rate by this run's batch over the recipe's"
    )
    parser.add_argument(
        "--seed", type=int, help="seed of all random numbers; without it, a random one, which is logged"
    )
    parser.add_argument(
        "--check-all", action="store_true", help="look at every picture and mask before training, not at some"
    )
    return parser.parse_args(argv)


def test_arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="test.py", description="Evaluate a checkpoint on the test set of an mmdet or mmseg config.")
    _add_common(parser)
    parser.add_argument("checkpoint", type=Path, help="a .pth file, as training writes them")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write the predictions; FILE.json: a list in COCO's results format, boxes as [x, y, width, height] in "
        "pixels of the image (detection only; masks, if any, go to FILE.segm.json); FILE.pkl: a pickled list with one "
        "dict per image, of boxes, labels and scores, or of the label map. An existing file is never overwritten",
    )
    parser.add_argument(
        "--show-dir",
        type=Path,
        metavar="DIR",
        help="draw ground truth (left) beside predictions (right), one <image>_gt_pred.png per image",
    )
    parser.add_argument(
        "--show-score", type=float, default=0.3, metavar="SCORE", help="draw boxes from this score on (0.3)"
    )
    parser.add_argument("--tta", action="store_true", help="test at the sizes and flips of the config's tta_pipeline")
    return parser.parse_args(argv)


def check_data_arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="check_data.py", description="Find what is wrong with the data sets of a config.")
    parser.add_argument("config", type=Path, help="a config file, such as configs/retinanet_pvt_s_coco.py")
    parser.add_argument("--check-all", action="store_true", help="look at every picture and mask, not at some")
    _add_options(parser)
    return parser.parse_args(argv)


def predict_arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="predict.py", description="Detect or segment in pictures with a trained or published model.")
    parser.add_argument("config", type=Path, help="a config file, such as configs/retinanet_pvt_s_coco.py")
    parser.add_argument("checkpoint", type=Path, help="a .pth file, as training writes them or as published")
    parser.add_argument(
        "pictures", type=Path, nargs="+", metavar="IMAGE_OR_FOLDER", help="pictures, or folders of them"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where the drawn pictures go, and predictions.json in COCO's format (or <image>_labels.png for each "
        "segmentation); predictions/<config name> by default. Nothing is overwritten",
    )
    parser.add_argument("--score-thr", type=float, default=0.3, metavar="SCORE", help="leave out lower scores (0.3)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda, cuda:1, cpu")
    _add_options(parser)
    return parser.parse_args(argv)


def try_arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="try_config.py",
        description="Run a training step and a test step of configs on noise, on the CPU, without data or pretrained "
        "weights: whether they run, and the memory that they take.",
    )
    parser.add_argument("configs", type=Path, nargs="+", metavar="CONFIG", help="config files")
    parser.add_argument(
        "--size", type=int, nargs="+", metavar="SIDE", help="height and width of the images (the config's)"
    )
    parser.add_argument("--images", type=int, metavar="COUNT", help="images of the training step (the config's batch)")
    _add_options(parser)
    args = parser.parse_args(argv)
    if args.size and (len(args.size) > 2 or min(args.size) < 1):
        raise UserError("--size takes a height and a width in pixels, or one number for both")
    if args.images is not None and args.images < 1:
        raise UserError(f"--images takes a number from 1, not {args.images}")
    return args


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="a config file, such as configs/retinanet_pvt_s_coco.py")
    parser.add_argument(
        "--work-dir", type=Path, metavar="DIR", help="where logs and checkpoints go (work_dirs/<config name>)"
    )
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm", "mpi"),
        default="none",
        help="how the processes of a distributed run were started; torchrun is recognised by itself",
    )
    _add_options(parser)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=_Options,
        default={},
        metavar="KEY=VALUE",
        help="change entries of the config: train_cfg.max_epochs=6 model.backbone.arch=tiny",
    )
