"""Find what is wrong with the data sets of a config."""

from __future__ import annotations

import argparse

import numpy as np
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import MODELS

from mm_vitbackbones import libraries
from mm_vitbackbones.cli import datasets, preflight
from mm_vitbackbones.cli.arguments import Parser, add_config, add_options, add_verbose
from mm_vitbackbones.cli.config import load_config
from mm_vitbackbones.data.reading import is_local, list_dataset
from mm_vitbackbones.data.statistics import Statistics, add_images
from mm_vitbackbones.data.values import DETECTION
from mm_vitbackbones.engine.console import Console
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.printing import LAYOUT, print
from mm_vitbackbones.progress import track


def check_data_arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="check_data.py", description="Find what is wrong with the data sets of a config.")
    add_config(parser)
    parser.add_argument("--check-all", action="store_true", help="check every image and mask, not a sample")
    parser.add_argument(
        "--statistics",
        action="store_true",
        help="check nothing: print the mean and std of each channel of the training images, for data_preprocessor",
    )
    add_options(parser)
    add_verbose(parser)
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """tools/check_data.py: report errors in the data sets of a config, and what will be left out of them."""
    args = check_data_arguments(argv)
    cfg = load_config(args.config, args.cfg_options)
    if args.statistics:
        with Console(args.verbose):
            print(statistics(cfg), keep=LAYOUT)
        return
    splits = [split for split in ("train", "val", "test") if cfg.get(f"{split}_dataloader") is not None]
    with Console(args.verbose):
        preflight.check(cfg, splits, every=args.check_all)
    looked = "every image and mask" if args.check_all else "a sample of images and masks; --check-all checks every one"
    print_log(f"nothing wrong was found in {', '.join(splits)} ({looked})", logger="current")


def statistics(cfg: Config) -> str:
    """The lines of ``data_preprocessor`` that normalise the training images of a config.

    Raises:
        UserError: there are none, or they cannot be loaded.
    """
    libraries.use(libraries.scope_of(cfg))
    found = Statistics()
    where = "train_dataloader"
    for dataset in datasets.datasets_of(cfg.get(where)):
        if not is_local(dataset):
            raise UserError(f"{where}: the images are on another machine: statistics read images of this one")
        datasets.check_data_exists(dataset, where)
        listed = list_dataset(dataset, where)
        infos = [listed.get_data_info(index) for index in range(len(listed))]
        for _ in track(add_images(found, dataset.get("pipeline"), infos, where), "statistics", len(infos)):
            pass
    if found.count is None:
        raise UserError(f"{where} has no images: there is nothing to compute a mean of")
    if not found.count.all():
        raise UserError(f"{where}: channel {int(found.count.argmin()) + 1} of all images has no finite value")
    model = cfg.model.get("data_preprocessor") or {}
    channels = len(found.count)
    swapped = channels == 3 and (model.get("bgr_to_rgb") or model.get("rgb_to_bgr"))
    order = [2, 1, 0] if swapped else [*range(channels)]
    mean, std = found.mean[order], found.std[order]
    lines = [
        f"# {found.images} training images of {channels} channels" + ", in the order of the network" * bool(swapped),
        *(["# values that are not finite were left out: replace them when images are loaded"] * bool(found.left_out)),
        *([f"# std of a constant channel: 1 in place of 0 ({_places(std == 0)})"] * bool((std == 0).any())),
        "model = dict(",
        "    data_preprocessor=dict(",
        *([f'        type="mm_vitbackbones.{DETECTION}",'] * _needs_ours(cfg, channels)),
        f"        mean={_numbers(mean)},",
        f"        std={_numbers(np.where(std == 0, 1, std))},",
        *(["        bgr_to_rgb=False,"] * (channels != 3)),
        "    ),",
        f"    backbone=dict(in_channels={channels}),",
        ")",
    ]
    return "\n".join(lines)


def _needs_ours(cfg: Config, channels: int) -> bool:
    """Whether the normalisation of a model takes one or three channels alone."""
    kind = libraries.look_up(MODELS, (cfg.model.get("data_preprocessor") or {}).get("type"))
    names = [each.__name__ for each in getattr(kind, "__mro__", ())]
    return channels not in (1, 3) and "ImgDataPreprocessor" in names


def _numbers(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def _places(chosen: np.ndarray) -> str:
    return ", ".join(f"channel {index + 1}" for index in np.flatnonzero(chosen))
