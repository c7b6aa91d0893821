"""The size of images as their pipeline loads them, from a file's header where that says enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mm_vitbackbones import limits
from mm_vitbackbones.data.image_files import has, opened, webp_size
from mm_vitbackbones.data.reading import ImageReader, UnreadableImage, transform_class
from mm_vitbackbones.files import why_no_file

BY_HEADER = ("BMP", "JPEG", "MPO", "PNG")
"""Formats that OpenCV reads as Pillow does."""

TURNED = ("JPEG", "MPO")
"""Formats that OpenCV certainly turns by their orientation."""

ORIENTATION = 0x0112
"""The EXIF tag."""

SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations by which loaders turn an image on its side."""


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
            if why := limits.PIXELS.exceeded(size[0] * size[1]):
                raise UnreadableImage(has(why))
            return size
        height, width = self._read(info).shape[:2]
        return height, width


def header_size(path: str, color_type: str) -> tuple[int, int] | None:
    """Height and width of an image from its header, as OpenCV loads it; None if only loading it can tell."""
    if why_no_file(path):
        return None
    try:
        width, height = webp_size(path)
        if limits.PIXELS.exceeded(width * height):
            return height, width
        with opened(path) as image:
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
    kind = transform_class(step)
    known = (getattr(kind, "__module__", ""), getattr(kind, "__name__", ""))
    plain = known == ("mmcv.transforms.loading", "LoadImageFromFile")
    return step.get("color_type", "color") if plain else None
