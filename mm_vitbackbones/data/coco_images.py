"""The images that a COCO-format file lists: whether they are there, can be read, and have the size it says."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mm_vitbackbones.data.reading import UnreadableImage
from mm_vitbackbones.data.sizes import SizeReader
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.progress import track

SAMPLE = 100
"""How many images a sample has, spread evenly over the data set."""

LISTED = 3
"""A message names so many images."""


def check_images(
    images: Sequence[Mapping[str, Any]], dataset: Mapping[str, Any], where: str, every: bool, compare: bool = True
) -> None:
    """Check a sample of the images, or all of them: each is there, can be read, and has the ``width`` and ``height``
    that the file says, as the pipeline of the data set loads it.

    In a sample of images that the libraries' own loader reads, the header of a file counts as the image.

    Args:
        images: entries with ``file_name``, ``width`` and ``height``.
        dataset: its config.
        compare: whether sizes matter. They do not where nothing is annotated.

    Raises:
        UserError: with the first images.
    """
    if "img" not in (dataset.get("data_prefix") or {}):
        raise UserError(f"{where}: the dataset needs data_prefix=dict(img=...), the folder of its images")
    prefix = (dataset.get("data_prefix") or {}).get("img") or ""
    if "://" in f"{dataset.get('data_root') or ''}{prefix}":
        return  # not on this disk
    folder = Path(dataset.get("data_root") or "", prefix)
    chosen = images if every else images[:: max(1, len(images) // SAMPLE)]
    missing = [image["file_name"] for image in chosen if not os.path.isfile(folder / image["file_name"])]
    if missing:
        looked = f"{len(missing)} of {len(chosen)} images that were looked for"
        raise UserError(f"{where}: {looked} are not in {folder}, such as {missing[0]}: set data_prefix=dict(img=...)")
    if not (every or compare):
        return
    size_of = SizeReader(dataset.get("pipeline") or ())
    broken, other, turned = [], [], False
    for image in track(chosen, f"{where}: looking at images", len(chosen)) if every else chosen:
        path = folder / image["file_name"]
        info = {"img_path": str(path), "img_id": image["id"], "seg_map_path": None, "instances": []}
        said = image["height"], image["width"]
        try:
            found = size_of({**info, "height": said[0], "width": said[1]}, whole=every)
        except UnreadableImage as error:
            broken.append(f"{path} ({str(error).replace(f': {path}', '')})")
        else:
            if compare and found != said:
                other.append(f"{image['file_name']} is {found[1]}x{found[0]}, not {said[1]}x{said[0]}")
                turned |= found == said[::-1]
    if broken:
        raise UserError(
            f"{where}: {len(broken)} of {len(chosen)} images cannot be read, such as {broken[0]}: fix "
            "them, or take them out of the annotation file"
        )
    if other:
        exif = ', or load images with color_type="color_ignore_orientation" if EXIF data turn them' if turned else ""
        raise UserError(
            f"{where}: {len(other)} of {len(chosen)} images have not the width and height that the annotation file "
            f"says, so that its boxes do not fit: {'; '.join(other[:LISTED])}: correct them{exif}"
        )
