"""Errors in the masks of a segmentation data set, found on the CPU before a run begins.

MMSegmentation would wrap a wrong label to 255 in silence, or end in an illegal memory access on the GPU.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from PIL import Image, UnidentifiedImageError

from mm_vitbackbones.errors import UserError
from mm_vitbackbones.progress import track

SAMPLE = 200
"""How many masks a sample has, spread evenly over the data set."""

SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations by which loaders turn an image on its side."""


def check_masks(dataset: Mapping[str, Any], where: str, every: bool = False) -> None:
    """Check the masks of a data set's config, a sample or every one.

    Raises:
        UserError: for an image without a mask, or a mask that is no PNG-like map of labels, is not of its image's size,
            or has labels that are no class.
    """
    # Without a pipeline no image is read: this lists the files by the library's own rules.
    listed = DATASETS.build({**dataset, "pipeline": [], "serialize_data": False})
    pairs = [listed.get_data_info(i) for i in range(len(listed))]
    if not pairs:
        raise UserError(f"{where}: no image *{listed.img_suffix} in {listed.data_prefix.get('img_path')}")
    check_pairs(pairs, where)
    classes = listed.metainfo.get("classes") or ()
    some = pairs if every else pairs[:: max(1, len(pairs) // SAMPLE)]
    present: Counter[int] = Counter()
    found = (check_mask(pair, len(classes), listed.ignore_index, where) for pair in some)
    for in_mask in track(found, f"{where}: looking at masks", len(some)) if every else found:
        present.update(in_mask)
    absent = [name for label, name in enumerate(classes) if label not in present]
    if absent:
        share = f"the {len(some)} masks" if every else f"{len(some)} of {len(pairs)} masks"
        print_log(
            f"{where}: {share} hold no pixel of {', '.join(map(str, absent[:10]))}{' ...' * (len(absent) > 10)}",
            logger="current",
            level=logging.WARNING,
        )


def check_pairs(pairs: Sequence[Mapping[str, Any]], where: str) -> None:
    """Check that every image has a mask. A mask without an image, which is never read, is logged."""
    missing = [pair["seg_map_path"] for pair in pairs if not Path(pair["seg_map_path"]).is_file()]
    if missing:
        raise UserError(
            f"{where}: {len(missing)} of {len(pairs)} images have no mask; the first that is missing is {missing[0]} "
            "(the names have to be the same, up to img_suffix and seg_map_suffix of the dataset)"
        )
    named = {Path(pair["seg_map_path"]) for pair in pairs}
    lone = sum(path not in named for folder in {path.parent for path in named} for path in folder.iterdir())
    if lone:
        print_log(f"{where}: {lone} masks have no image", logger="current", level=logging.WARNING)


def check_mask(pair: Mapping[str, Any], num_classes: int, ignore_index: int, where: str) -> list[int]:
    """The classes of one mask; UserError for a mask that cannot be right."""
    path = pair["seg_map_path"]
    try:
        with Image.open(path) as mask:
            kind, labels = mask.format, np.asarray(mask)
        size = _size(pair["img_path"])
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{where}: cannot be read: {error}") from None
    if kind == "JPEG":
        raise UserError(f"{where}: {path} is a JPEG file, which blurs labels into others: save masks as PNG")
    if labels.ndim != 2:
        raise UserError(
            f"{where}: {path} has {labels.shape[2]} channels: a mask has one, which holds the number of each pixel's "
            "class, and no colours"
        )
    if labels.shape != size:
        raise UserError(
            f"{where}: {path} is {labels.shape[1]}x{labels.shape[0]}, and its image {size[1]}x{size[0]} (width x "
            "height): they have to be equal"
        )
    found = {int(value): int(count) for value, count in zip(*np.unique(labels, return_counts=True), strict=True)}
    label_of = _label_of(pair, ignore_index)
    wrong = {value: n for value, n in found.items() if not (0 <= label_of(value) < num_classes)}
    wrong = {value: n for value, n in wrong.items() if label_of(value) != ignore_index}
    if wrong:
        values = ", ".join(f"{value} ({count} pixels)" for value, count in [*wrong.items()][:5])
        first = 1 if pair.get("reduce_zero_label") else 0
        raise UserError(
            f"{where}: {path} has the labels {values}, and the {num_classes} classes are "
            f"{first} to {first + num_classes - 1} ({ignore_index} and{' 0' if first else ''} "
            f"reduce_zero_label={bool(first)} apart): fix the mask, or metainfo=dict(classes=(...)) of the dataset"
        )
    return [label_of(value) for value in found]


def _label_of(pair: Mapping[str, Any], ignore_index: int) -> Any:
    """The function from a mask's value to its label, as in the library's loader."""
    renamed = pair.get("label_map") or {}

    def label_of(value: int) -> int:
        value = renamed.get(value, value)
        if not pair.get("reduce_zero_label"):
            return value
        return ignore_index if value in (0, 255) else value - 1

    return label_of


def _size(path: str) -> tuple[int, int]:
    """Height and width of an image as a loader returns it, from its header alone."""
    with Image.open(path) as image:
        width, height = image.size
        turned = image.getexif().get(0x0112) in SIDEWAYS
    return (width, height) if turned else (height, width)
