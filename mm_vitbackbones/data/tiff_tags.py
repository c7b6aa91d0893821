"""The tags of a TIFF file, before a library reads them."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import IO, Any

SPARE = 2**16
"""Bytes that tags may take above those of their file."""


def check_directories(path: str | Path) -> str:
    """What is wrong with the tags of a TIFF file, as "it is ..."; empty for other files, and where nothing is.

    OpenCV keeps a copy of each tag's values, and a thousand tags can refer to the same bytes.
    """
    try:
        with Path(path).open("rb") as file:
            return _check_directories(file)
    except (struct.error, ValueError, OSError, OverflowError):
        return ""  # truncated, or of another form: who decodes it says so


def _check_directories(file: IO[bytes]) -> str:
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
    if not order or len(head) < 8 or struct.unpack(f"{order}H", head[2:4])[0] not in (42, 43):
        return ""
    big = b"+" in head[2:4]
    counted, entry, link = (order + form for form in (("Q", "HHQQ", "Q") if big else ("H", "HHII", "I")))
    length = struct.calcsize(entry)
    size, total, seen = file.seek(0, io.SEEK_END), 0, set[int]()
    (place,) = struct.unpack_from(link, head, 8 if big else 4)
    while place and place not in seen:
        seen.add(place)
        file.seek(place)
        (count,) = _read(file, counted)
        if count * length > size:
            return "it is broken: it has more tags than bytes"
        tags = struct.iter_unpack(entry, file.read(count * length))
        sizes = ((number * _SIZES.get(kind, 0), at) for _, kind, number, at in tags)
        here = sum(taken for taken, at in sizes if 8 < taken <= size - at)  # what ends after the file is not read
        total += here
        if here > size + SPARE or total > 16 * size + SPARE:
            return f"it is broken: its tags take {max(here, total):,} bytes, and the file has {size:,}"
        (place,) = _read(file, link)
    return ""


_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value, by a tag's type."""


def _read(file: IO[bytes], form: str) -> tuple[Any, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))
