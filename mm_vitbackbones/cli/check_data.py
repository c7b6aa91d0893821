"""Find what is wrong with the data sets of a config."""

from __future__ import annotations

import argparse

from mmengine.logging import print_log

from mm_vitbackbones.cli import preflight
from mm_vitbackbones.cli.arguments import Parser, add_config, add_options, add_verbose
from mm_vitbackbones.cli.config import load_config
from mm_vitbackbones.engine.console import Console


def check_data_arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="check_data.py", description="Find what is wrong with the data sets of a config.")
    add_config(parser)
    parser.add_argument("--check-all", action="store_true", help="check every image and mask, not a sample")
    add_options(parser)
    add_verbose(parser)
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """tools/check_data.py: report errors in the data sets of a config, and what will be left out of them."""
    args = check_data_arguments(argv)
    cfg = load_config(args.config, args.cfg_options)
    splits = [split for split in ("train", "val", "test") if cfg.get(f"{split}_dataloader") is not None]
    with Console(args.verbose):
        preflight.check(cfg, splits, every=args.check_all)
    looked = "every image and mask" if args.check_all else "a sample of images and masks; --check-all checks every one"
    print_log(f"nothing wrong was found in {', '.join(splits)} ({looked})", logger="current")
