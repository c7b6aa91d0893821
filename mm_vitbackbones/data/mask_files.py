"""Files of masks, as they are stored."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from mm_vitbackbones.data.image_files import why_unreadable
from mm_vitbackbones.data.reading import reason
from mm_vitbackbones.errors import UserError


def read_mask(path: str | Path, where: str = "") -> tuple[np.ndarray, list[int] | None]:
    """The values of a mask, (H, W) or (H, W, channels), and its palette, if it has one: red, green, blue, red, ...

    Args:
        where: the part of a config that names it, for messages.

    Raises:
        UserError: it cannot be read, or is a JPEG file.
    """
    with _opened(path, where) as image:
        image.load()
        kind, values = image.format, np.asarray(image)
        palette = image.getpalette() or [] if image.mode == "P" else None
    if kind in ("JPEG", "MPO"):
        raise UserError(f"{_named(path, where)} is a JPEG file, which blurs classes into others: save masks as PNG")
    return values, palette


def mask_size(path: str | Path) -> tuple[int, int]:
    """The width and height that the header of a mask says.

    Raises:
        UserError: it cannot be read.
    """
    with _opened(path) as image:
        return image.size


@contextlib.contextmanager
def _opened(path: str | Path, where: str = "") -> Iterator[Image.Image]:
    """The file of a mask. Any error within is one of the file."""
    if why := why_unreadable(path):
        raise UserError(f"{_named(path, where)} cannot be read: {why}")
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # Pillow raises errors of many kinds
        raise UserError(f"{_named(path, where)} cannot be read: {reason(error)}") from None


def _named(path: str | Path, where: str) -> str:
    return f"{where}: {path}" if where else f"{path}"
