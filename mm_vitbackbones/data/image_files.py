"""What the file of an image says of itself before it is loaded: whether it is one, and how large the image is."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from PIL import Image

from mm_vitbackbones import limits
from mm_vitbackbones.data.tiff_tags import SPARE, check_directories
from mm_vitbackbones.files import why_no_file


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
    return has(limits.IMAGE.exceeded(size)) or check_directories(path) or _check_chunks(path) or too_many_pixels(path)


MOST_CHUNKS = 1_000_000
"""Of a PNG file. One of 2 GiB has 260,000, as they are written."""


def _check_chunks(path: str | Path) -> str:
    """What is wrong with the chunks of a PNG file, as "it is ..."; empty for other files, and where nothing is.

    Readers take memory for all that a chunk says to hold before they look how much there is.
    """
    with contextlib.suppress(OSError, ValueError), open(path, "rb") as file:
        if file.read(8) != b"\x89PNG\r\n\x1a\n":
            return ""
        size = os.fstat(file.fileno()).st_size
        for _ in range(MOST_CHUNKS):
            head = file.read(8)
            length = int.from_bytes(head[:4], "big")
            if len(head) < 8 or head[4:] == b"IEND":
                return ""
            if length > size + SPARE:
                return f"it is broken: a chunk says {length:,} bytes, and the file has {size:,}"
            file.seek(length + 4, os.SEEK_CUR)
        return f"it is broken: it has more than {MOST_CHUNKS:,} chunks"
    return ""


def too_many_pixels(file: str | Path | IO[bytes]) -> str:
    """What is too large in an image, as "it has ..."; empty also where the header says no size."""
    try:
        width, height = webp_size(file)
        if why := limits.PIXELS.exceeded(width * height):
            return has(why)
        with opened(file) as image:
            width, height = image.size
    except Exception:  # Pillow raises many kinds for a file that is broken, or none of an image
        return ""
    return has(limits.PIXELS.exceeded(width * height))


def webp_size(file: str | Path | IO[bytes]) -> tuple[int, int]:
    """The size that the header of a WebP file says; zeros for other files. Pillow takes memory for all at once."""
    if isinstance(file, (str, Path)):
        with open(file, "rb") as raw:
            head = raw.read(30)
    else:
        head = file.read(30)
        file.seek(-len(head), os.SEEK_CUR)
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP" or len(head) < 30:
        return 0, 0
    if head[12:16] == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF


def has(exceeded: str) -> str:
    """What ``Limit.exceeded`` says, of an image."""
    return f"it has {exceeded}" if exceeded else ""


@contextlib.contextmanager
def bounded_pillow() -> Iterator[None]:
    """Within it, Pillow obeys the limit of pixels wherever a library calls it, also where the switch raises the limit
    above Pillow's own.

    Raises:
        UserError: the switch is no factor of at least 1.
    """
    own = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        Image.MAX_IMAGE_PIXELS = (
            limits.PIXELS.value // 2
        )  # above this it warns, above twice as many it ends in an error
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = own


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
