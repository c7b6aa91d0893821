"""The images that a COCO-format file lists: whether they are there, can be read, and have the size it says."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.registry import TRANSFORMS
from PIL import Image

from mm_vitbackbones.data.reading import ImageReader, UnreadableImage
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.progress import track

SAMPLE = 100
"""How many images a sample has, spread evenly over the data set."""

LISTED = 3
"""A message names so many images."""

BY_HEADER = ("BMP", "JPEG", "MPO", "PNG")
"""Formats that OpenCV reads as Pillow does."""

TURNED = ("JPEG", "MPO")
"""Formats that OpenCV certainly turns by their orientation."""

ORIENTATION = 0x0112
"""The EXIF tag."""

SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations by which loaders turn an image on its side."""


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


class SizeReader:
    """The size of images, as the first steps of a pipeline load them."""

    def __init__(self, pipeline: Sequence[Any]) -> None:
        self._color_type = _plain_color_type(pipeline[0]) if pipeline else "color"
        self._read = ImageReader(pipeline or [{"type": "mmcv.LoadImageFromFile"}])

    def __call__(self, info: Mapping[str, Any], whole: bool) -> tuple[int, int]:
        """Height and width of an image; if not the ``whole`` is to be read, from its header where that says enough.

        Raises:
            UnreadableImage: it cannot be loaded.
        """
        if not whole and self._color_type and (size := header_size(info["img_path"], self._color_type)):
            return size
        try:
            image = self._read(info)
        except UnreadableImage:
            raise
        except Exception as error:  # of a transform that cannot be built
            raise UserError(f"the data set's pipeline cannot be built: {' '.join(str(error).split())}") from None
        return image.shape[0], image.shape[1]


def header_size(path: str, color_type: str) -> tuple[int, int] | None:
    """Height and width of an image from its header, as OpenCV loads it; None if only loading it can tell."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of many pixels
            with Image.open(path) as image:
                width, height = image.size
                kind = image.format
                # Of a PNG file without EXIF data, Pillow would read all to look for them.
                orientation = image.getexif().get(ORIENTATION) if kind in TURNED or "exif" in image.info else None
    except Exception:  # Pillow raises many kinds for a file that is broken, or none of an image
        return None
    if kind not in BY_HEADER:
        return None
    if orientation not in SIDEWAYS:
        return height, width
    if kind not in TURNED or color_type == "unchanged":
        return None
    return (height, width) if color_type.endswith("_ignore_orientation") else (width, height)


def _plain_color_type(step: Any) -> str | None:
    """How the first step of a pipeline loads colours, if it is the libraries' loader by OpenCV."""
    if not isinstance(step, Mapping) or step.get("imdecode_backend", "cv2") != "cv2":
        return None
    if step.get("backend_args") or step.get("file_client_args"):
        return None
    kind = step.get("type")
    if isinstance(kind, str):
        with TRANSFORMS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    plain = (getattr(kind, "__module__", ""), getattr(kind, "__name__", "")) == (
        "mmcv.transforms.loading",
        "LoadImageFromFile",
    )
    return step.get("color_type", "color") if plain else None
