"""What the strips and tiles of a TIFF file ask for, found before tifffile decodes them.

The tags of a page say how large it is, and each strip or tile is compressed for itself. tifffile takes memory for what
comes out of it, and a strip of a few bytes can hold gigabytes, whatever the tags say. OpenCV takes the size of the
tags, and needs none of this.
"""

from __future__ import annotations

import io
import lzma
import math
import struct
import zlib
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import IO, Any, NamedTuple

from mm_vitbackbones import limits
from mm_vitbackbones.data.image_files import has, opened
from mm_vitbackbones.errors import UserError

SPARE = 2**16
"""Bytes, pixels or values that a part may hold above what the tags say: encoders fill up blocks."""

_PIECE = 2**20
_DICTIONARY = 2**28  # bytes that LZMA may take for its own

_ADVICE = "save it without compression, or with deflate or LZW, or as .npy"


class Part(NamedTuple):
    """A strip or a tile, as the tags have it.

    Args:
        offset: of its bytes in the file.
        length: how many they are.
    """

    offset: int
    length: int


def check_parts(
    file: IO[bytes], compression: int, parts: Iterable[Part], pixels: int, samples: int, itemsize: int
) -> None:
    """Check the strips or tiles of a page.

    Args:
        compression: the value of the tag of this name.
        pixels: of the largest part.
        samples: values of a pixel in a part.
        itemsize: bytes of a value when it is decoded.

    Raises:
        UserError: one of them is not in the file, holds more than the tags say, or is of a form that cannot be bounded.
    """
    size = file.seek(0, io.SEEK_END)
    declared = pixels * samples * itemsize
    listed = [part for part in parts if part.length]
    if any(part.offset + part.length > size for part in listed):
        raise UserError("it is truncated: one of its strips or tiles ends after the file")
    if sum(part.length for part in listed) > size + 2 * len(listed) * (declared + SPARE):
        raise UserError("it is broken: its strips or tiles take more bytes than the file has")
    if compression in _BY_THE_TAGS:
        return
    if compression in _BY_IMAGECODECS:
        if find_spec("imagecodecs") is None:
            raise UserError("it is compressed in a way that is read with imagecodecs: `pip install imagecodecs`")
        return
    check = _INFLATED.get(compression)
    if check is None and compression not in _IMAGES:
        raise UserError(f"it is compressed in a way that is not read (Compression={compression}): {_ADVICE}")
    for part in listed:
        file.seek(part.offset)
        if check is not None:
            check(file, part.length, declared + SPARE)
        else:
            _check_image(file.read(part.length), _IMAGES[compression], pixels, pixels * samples)


def check_page(file: IO[bytes], page: Any) -> None:
    """Check the strips or tiles of one of tifffile's pages, and that it takes no more memory than the limits.

    Raises:
        UserError: it does, or see ``check_parts``.
    """
    if getattr(page, "jpegheader", None) is not None or _of_jpeg(getattr(page, "jpegtables", None) or b"")[0]:
        raise UserError(f"its JPEG is in a form that is not read: {_ADVICE}")
    samples = page.samplesperpixel if page.planarconfig == 1 else 1
    if page.is_tiled:
        pixels = page.tiledepth * page.tilelength * page.tilewidth
    else:
        pixels = page.imagewidth * min(page.rowsperstrip, page.imagelength)
    itemsize = page.dtype.itemsize if page.dtype is not None else 1
    parts = [*map(Part, page.dataoffsets, page.databytecounts)]
    # The last tiles of a row or column are filled up. The image itself has been compared with the limits.
    values = max(math.prod(page.shaped), math.prod(page.chunked) * pixels * samples)
    whole = max(page.imagewidth * page.imagelength * page.imagedepth, math.prod(page.chunked) * pixels // 2)
    if why := limits.PIXELS.exceeded(whole) or limits.IMAGE.exceeded(values * itemsize // 2):
        raise UserError(has(why))
    check_parts(file, int(page.compression), parts, pixels, samples, itemsize)


def _too_much(most: int) -> UserError:
    return UserError(f"it is broken: one of its strips or tiles holds more than the {most:,} bytes that its tags allow")


def _check_deflate(file: IO[bytes], count: int, most: int) -> None:
    stream = zlib.decompressobj()
    _check_stream(file, count, most, stream.decompress, lambda: bool(stream.unconsumed_tail), stream)


def _check_lzma(file: IO[bytes], count: int, most: int) -> None:
    stream = lzma.LZMADecompressor(memlimit=_DICTIONARY)
    _check_stream(file, count, most, stream.decompress, lambda: not stream.needs_input, stream)


def _check_stream(
    file: IO[bytes],
    count: int,
    most: int,
    inflate: Callable[[bytes, int], bytes],
    more: Callable[[], bool],
    stream: Any,
) -> None:
    """Inflate so many bytes of a file in pieces, and keep none of them."""
    found = 0
    try:
        while count > 0 and not stream.eof:
            data = file.read(min(count, _PIECE))
            count -= len(data)
            if not data:
                return
            while not stream.eof:
                found += len(inflate(data, _PIECE))
                if found > most:
                    raise _too_much(most)
                if not more():
                    break
                data = getattr(stream, "unconsumed_tail", b"")
    except (zlib.error, lzma.LZMAError) as error:
        raise UserError(f"it is broken: one of its strips or tiles cannot be inflated ({error})") from None


def _check_image(data: bytes, measure: Callable[[bytes], tuple[int, int]], pixels: int, values: int) -> None:
    """Check an image within a page, which has a size of its own."""
    found, samples = measure(data)
    if not found:
        raise UserError(f"it is broken, or one of its strips or tiles is in a form that is not read: {_ADVICE}")
    # Blocks of JPEG are filled up to 16 pixels.
    if found > 2 * pixels + SPARE or found * samples > 2 * values + 4 * SPARE:
        raise UserError(
            f"it is broken: one of its strips or tiles holds {found:,} pixels, and its tags say {pixels:,} at most"
        )


def _of_jpeg(data: bytes) -> tuple[int, int]:
    """Pixels, and values of each, by the header of a frame; zeros where there is none."""
    at = 2
    while data[:2] == b"\xff\xd8" and at + 9 < len(data) and data[at] == 0xFF:
        marker, (length,) = data[at + 1], struct.unpack_from(">H", data, at + 2)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width, samples = struct.unpack_from(">HHB", data, at + 5)
            return height * width, samples
        if marker == 0xDA:
            break
        at += 1 if marker == 0xFF else 2 if marker == 0x01 or 0xD0 <= marker <= 0xD7 else 2 + length
    return 0, 0


def _of_jpeg2000(data: bytes) -> tuple[int, int]:
    """The same for a code stream, alone or in a file of boxes."""
    at = 0
    while not data.startswith(b"\xff\x4f\xff\x51", at):
        if at + 8 > len(data):
            return 0, 0
        length, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if length == 1 and at + 16 <= len(data):
            (length,), head = struct.unpack_from(">Q", data, at + 8), 16
        if kind != b"jp2c" and length < head:
            return 0, 0
        at += head if kind == b"jp2c" else length
    if at + 42 > len(data):
        return 0, 0
    right, below, left, above = struct.unpack_from(">4I", data, at + 8)
    (samples,) = struct.unpack_from(">H", data, at + 40)
    return max(right - left, 0) * max(below - above, 0), samples


def _of_pillow(data: bytes) -> tuple[int, int]:
    """The same for PNG and WebP, which have four values for a pixel at most."""
    try:
        with opened(io.BytesIO(data)) as image:
            if image.format not in ("PNG", "WEBP"):
                return 0, 0
            return image.width * image.height, len(image.getbands())
    except Exception:  # Pillow raises many kinds for what is broken
        return 0, 0


_BY_THE_TAGS = (1, 2, 3, 4)
"""Compressions that are decoded into as many bytes as the tags say: none, and those of fax machines."""

_BY_IMAGECODECS = (5, 32773, 34926, 50000)
"""LZW, PackBits and Zstandard: imagecodecs decodes them into as many bytes as the tags say, and tifffile alone does
not."""

_INFLATED = {8: _check_deflate, 32946: _check_deflate, 50013: _check_deflate, 34925: _check_lzma}

_IMAGES = {
    **dict.fromkeys((6, 7, 33007, 34892), _of_jpeg),
    **dict.fromkeys((33003, 33004, 33005, 34712), _of_jpeg2000),
    **dict.fromkeys((34927, 34933, 50001), _of_pillow),
}
