"""Write a backbone, a detector or a segmentor to a file that runs without this package, and check that file."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from mmengine.registry import DefaultScope

from mm_vitbackbones import libraries, recipes
from mm_vitbackbones.backbones import Backbone
from mm_vitbackbones.build import backbone_names, build_backbone
from mm_vitbackbones.cli import datasets, preflight
from mm_vitbackbones.cli.arguments import Parser, add_options, add_verbose, checkpoint_file, config_file
from mm_vitbackbones.cli.config import load_config
from mm_vitbackbones.cli.launch import registry_errors
from mm_vitbackbones.cli.model import build_model
from mm_vitbackbones.cli.weights import load_weights
from mm_vitbackbones.engine.console import Console
from mm_vitbackbones.engine.resume import read
from mm_vitbackbones.errors import UserError, did_you_mean
from mm_vitbackbones.exporting import ExportMismatch, export, packages
from mm_vitbackbones.exporting.files import KINDS, check_new
from mm_vitbackbones.exporting.onnx_files import OPSET
from mm_vitbackbones.printing import LAYOUT, print


def main(argv: list[str]) -> None:
    """The command line of tools/export.py.

    Raises:
        UserError: there is no such config, backbone or file, or the network cannot be exported.
        SystemExit: with code 1 if the file does not compute what the network does.
    """
    args = export_arguments(argv)
    with Console(args.verbose):
        _export(args)


def _export(args: argparse.Namespace) -> None:
    packages.check(args.to)
    if args.size and len(args.size) > 2:
        raise UserError("--size takes a height and a width, or one number for both")
    out = args.out or Path(f"{Path(args.target).stem}{KINDS[args.to]}")
    check_new(out, args.to, args.force)
    module, classes = _network(args)
    try:
        done = export(
            module,
            out,
            to=args.to,
            size=(args.size[0], args.size[-1]) if args.size else None,
            fixed=args.fixed,
            opset=args.opset,
            half=args.half,
            with_nms=args.with_nms,
            labels=args.labels,
            preprocess=args.preprocess == "in",
            classes=classes,
            tolerance=args.tolerance,
            force=args.force,
        )
    except ExportMismatch as error:
        print(error.done, keep=LAYOUT)
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(done, keep=LAYOUT)


def _network(args: argparse.Namespace) -> tuple[Any, Sequence[str] | None]:
    """The network that a target names, with its weights, and its classes."""
    known = backbone_names()
    if args.target in known:
        if args.cfg_options:
            raise UserError("--cfg-options goes with a config, and a backbone by its name has none")
        if args.backbone:
            raise UserError("--backbone takes the backbone out of a config, and this is one: leave it out")
        if args.checkpoint is None:
            _report_random(args.target)
        return build_backbone(args.target, pretrained=args.checkpoint), None
    if Path(args.target).name == args.target and not Path(args.target).suffix and args.target not in recipes.names():
        near = did_you_mean(args.target, [*known, *recipes.names()])
        raise UserError(f"there is no backbone and no recipe {args.target!r}{near} (a path ends in .py)")
    path = config_file(args.target)
    cfg = load_config(path, args.cfg_options)
    scope = libraries.scope_of(cfg)
    libraries.use(scope)
    preflight.check_backbone(cfg.model)
    with registry_errors(path):
        model = build_model(cfg)
    if args.checkpoint is None:
        _report_random(path.name)
    else:
        checkpoint = checkpoint_file(args.checkpoint)
        load_weights(model, read(checkpoint), checkpoint)
    if args.backbone:
        backbone = model.backbone
        if not isinstance(backbone, Backbone):
            raise UserError(f"{path}: model.backbone is a {type(backbone).__name__}, and none of this package")
        return backbone, None
    dataset = next(iter(datasets.datasets_of(cfg.get("test_dataloader"))), None)
    with DefaultScope.overwrite_default_scope(scope):
        classes = None if dataset is None else datasets.classes_of(dataset)
    return model, classes


def _report_random(name: str) -> None:
    message = f"{name}: no CHECKPOINT was given, so the file gets random weights"
    print_log(message, logger="current", level=logging.WARNING)


def export_arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="export.py",
        description="Write a network to a file that runs without this package: ONNX, or PyTorch's exported program. "
        "The file is run at sizes that it was not traced at; the exit code is 1 if it differs from the network.",
    )
    parser.add_argument(
        "target",
        metavar="CONFIG|BACKBONE",
        help="a recipe's name or a config file, for the whole detector or segmentor; or a backbone, such as pvt_v2_b0",
    )
    parser.add_argument(
        "checkpoint",
        nargs="?",
        metavar="CHECKPOINT",
        help="a .pth file, its https address, or the work dir of a training; of a backbone also the name of published "
        "weights, such as imagenet1k; random weights without it",
    )
    parser.add_argument("--to", choices=tuple(KINDS), default="onnx", help="the kind of file (onnx)")
    parser.add_argument(
        "--size", type=int, nargs="+", metavar="SIDE", help="height and width of the traced image (512 with --fixed)"
    )
    parser.add_argument(
        "--fixed", action="store_true", help="a file for one image of exactly this size; all are free otherwise"
    )
    parser.add_argument("--opset", type=int, metavar="N", help=f"of ONNX ({OPSET})")
    parser.add_argument(
        "--half", action="store_true", help="weights and products in fp16, norms and softmax in fp32; image in fp32"
    )
    parser.add_argument(
        "--with-nms", action="store_true", help="of a detector: boxes, scores and labels, and not the maps of its head"
    )
    parser.add_argument(
        "--labels", action="store_true", help="of a segmentor: the label of each pixel, and not the scores"
    )
    parser.add_argument("--backbone", action="store_true", help="of a config: the backbone alone")
    parser.add_argument(
        "--preprocess",
        choices=("in", "out"),
        default="out",
        help="in: the file takes values from 0 to 255 and normalises them; out: it takes a normalised image (out)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file (named after the target, in this folder)")
    parser.add_argument("--force", action="store_true", help="overwrite FILE if it exists")
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        help="the largest error that is right, as a part of the largest value (1e-4, and 2e-2 with --half)",
    )
    add_options(parser)
    add_verbose(parser)
    return parser.parse_args(argv)
