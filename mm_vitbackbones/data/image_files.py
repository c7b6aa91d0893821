"""What the file of an image says of itself before it is loaded: whether it is one, and how large the image is."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from PIL import Image

from mm_vitbackbones.files import why_no_file
from mm_vitbackbones.limits import IMAGE_BYTES, IMAGE_PIXELS


def why_unreadable(path: str | Path) -> str:
    """Why a file is not to be opened as an image, in a few words; empty if it may be, or is not on this disk.

    A named pipe or a device would be waited for, and a small file can hold an image that takes all memory.
    """
    if kind := why_no_file(path):
        return f"it is {kind}, and no file"
    try:
        size = os.path.getsize(path)
    except (OSError, ValueError):
        return ""  # loading it says so
    return IMAGE_BYTES.exceeded(size) or too_many_pixels(path)


def too_many_pixels(file: str | Path | IO[bytes]) -> str:
    """What is too large in an image, as ``Limit.exceeded`` says it; empty also where the header says no size."""
    try:
        with opened(file) as image:
            width, height = image.size
    except Exception:  # Pillow raises many kinds for a file that is broken, or none of an image
        return ""
    return IMAGE_PIXELS.exceeded(width * height)


@contextlib.contextmanager
def opened(file: str | Path | IO[bytes]) -> Iterator[Image.Image]:
    """An image whose header alone has been read, of any size. Pillow's own limit holds again when it is loaded."""
    own = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS = None
        try:
            image = Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = own
        with image:
            yield image
