"""A TIFF file takes as much memory as its tags say, and no strip or tile more. Most tests need no tifffile."""

from __future__ import annotations

import io
import lzma
import struct
import sys
import tracemalloc
import zlib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.bands import write_tiff
from mm_vitbackbones import limits
from mm_vitbackbones.data import tiff_parts
from mm_vitbackbones.data.bands import read_bands
from mm_vitbackbones.data.image_files import too_many_pixels, why_unreadable
from mm_vitbackbones.data.tiff_parts import Part, check_parts
from mm_vitbackbones.errors import UserError

PIXELS, SAMPLES, ITEMSIZE = 32 * 32, 3, 1
DECLARED = PIXELS * SAMPLES * ITEMSIZE
BOMB = zlib.compress(bytes(2**27))


def saved(form: str, side: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side)).save(out, form)
    return out.getvalue()


def boxed(stream: bytes) -> bytes:
    """A JPEG 2000 code stream after a box that holds a smaller one."""
    decoy = saved("JPEG2000", 1)[-200:]
    start = stream.index(b"\xff\x4f\xff\x51")
    return struct.pack(">I4s", 8 + len(decoy), b"free") + decoy + struct.pack(">I4s", 0, b"jp2c") + stream[start:]


RIGHT = {
    "none": (1, bytes(DECLARED)),
    "deflate": (8, zlib.compress(bytes(DECLARED))),
    "old deflate": (32946, zlib.compress(bytes(DECLARED))),
    "lzma": (34925, lzma.compress(bytes(DECLARED))),
    "jpeg": (7, saved("JPEG", 32)),
    "jpeg 2000": (34712, saved("JPEG2000", 32)),
    "boxed jpeg 2000": (33003, boxed(saved("JPEG2000", 32))),
    "png": (34933, saved("PNG", 32)),
    "webp": (50001, saved("WEBP", 32)),
}
TOO_LARGE = {
    "deflate": (8, BOMB),
    "lzma": (34925, lzma.compress(bytes(2**25), preset=0)),
    "two streams of jpeg": (7, b"\xff\xd8\xff\xfe\0\x10" + saved("JPEG", 8)[:14] + saved("JPEG", 2000)[2:]),
    "jpeg": (7, saved("JPEG", 2000)),
    "dng jpeg": (34892, saved("JPEG", 2000)),
    "jpeg 2000": (34712, saved("JPEG2000", 500)),
    "boxed jpeg 2000": (33003, boxed(saved("JPEG2000", 500))),
    "png": (34933, saved("PNG", 2000)),
    "webp": (50001, saved("WEBP", 2000)),
}
ALLOWED = DECLARED + tiff_parts.SPARE


def check(compression: int, data: bytes, parts: list[Part] | None = None) -> None:
    file = io.BytesIO(b"II*\0" + data)
    check_parts(file, compression, parts or [Part(4, len(data))], PIXELS, SAMPLES, ITEMSIZE)


@pytest.mark.parametrize("kind", RIGHT)
def test_a_part_that_holds_what_the_tags_say_passes(kind: str) -> None:
    check(*RIGHT[kind])


@pytest.mark.parametrize("kind", TOO_LARGE)
def test_a_part_that_holds_more_is_refused_and_takes_no_memory(kind: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="one of its strips or tiles holds") as raised:
            check(*TOO_LARGE[kind])
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("compress", [zlib.compress, lzma.compress])
def test_the_bound_is_that_of_the_tags(compress: Any) -> None:
    compression = 8 if compress is zlib.compress else 34925
    check(compression, compress(bytes(ALLOWED)))
    with pytest.raises(UserError, match=f"holds more than the {ALLOWED:,} bytes that its tags allow"):
        check(compression, compress(bytes(ALLOWED + 1)))
    with pytest.raises(UserError, match="cannot be inflated"):
        check(compression, compress(bytes(DECLARED))[:4] + b"\xff" * 60)


def test_a_dictionary_of_gigabytes_is_refused() -> None:
    data = bytearray(lzma.compress(bytes(DECLARED), filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 2**12}]))
    data[16] = 36  # 1 GiB
    data[20:24] = struct.pack("<I", zlib.crc32(bytes(data[12:20])))
    with pytest.raises(UserError, match=r"cannot be inflated \(Memory usage limit exceeded\)"):
        check(34925, bytes(data))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([Part(4, DECLARED), Part(DECLARED, DECLARED)], "it is truncated: one of its strips or tiles ends after"),
        ([Part(4, 2**62)], "it is truncated"),
        ([Part(2**62, 1)], "it is truncated"),
        ([Part(4, 10 * 2**20)] * 1000, "its strips or tiles take more bytes than the file has"),
    ],
)
def test_parts_that_a_file_does_not_have_are_refused(parts: list[Part], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check(1, bytes(10 * 2**20 if len(parts) == 1000 else DECLARED + 8), parts)


def test_parts_may_be_empty_or_the_same_bytes() -> None:
    check(1, bytes(DECLARED), [Part(0, 0), Part(2**40, 0), *[Part(4, DECLARED)] * 20])


@pytest.mark.parametrize("compression", [34887, 34934, 50002, 65000, 0, 12345])
def test_what_cannot_be_bounded_is_refused(compression: int) -> None:
    with pytest.raises(UserError, match=rf"not read \(Compression={compression}\): save it"):
        check(compression, bytes(100))


@pytest.mark.parametrize("compression", [5, 32773, 50000])
def test_what_imagecodecs_bounds_needs_imagecodecs(compression: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff_parts, "find_spec", lambda name: object())
    check(compression, bytes(100))
    monkeypatch.setattr(tiff_parts, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install imagecodecs"):
        check(compression, bytes(100))


@pytest.mark.parametrize("compression", [7, 34712, 34933])
def test_a_part_without_a_header_is_refused(compression: int) -> None:
    for data in (b"", b"\xff", b"\xff\xd8\xff", b"\0" * 100, b"\xff\xd8" + b"\xff" * 100, b"\xff\x4f\xff\x51"):
        with pytest.raises(UserError, match="in a form that is not read"):
            check(compression, data or b"\0")


# ---- from the file to tifffile


def page_of(path: Path, **changes: Any) -> SimpleNamespace:
    """A page as tifffile has it, of a file whose only strip begins at its fourth byte."""
    page = dict(
        compression=8,
        dataoffsets=(8,),
        databytecounts=(path.stat().st_size - 8,),
        is_tiled=False,
        rowsperstrip=2**32 - 1,
        imagewidth=32,
        imagelength=32,
        imagedepth=1,
        samplesperpixel=SAMPLES,
        planarconfig=1,
        dtype=np.dtype("u1"),
        shaped=(1, 1, 32, 32, SAMPLES),
        chunked=(1, 1, 1, 1, 1),
        jpegheader=None,
        jpegtables=None,
        tags=SimpleNamespace(valueof=lambda tag, default: default),
        asarray=lambda: np.zeros((32, 32, SAMPLES), np.uint8),
    )
    return SimpleNamespace(**page | changes)


def read_by(page: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Read an image with a tifffile that finds this page."""

    class File:
        pages = (page,)

        def __init__(self, path: Path) -> None: ...

        def __enter__(self) -> File:
            return self

        def __exit__(self, *_: object) -> None: ...

    module = ModuleType("tifffile")
    module.TiffFile = File  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tifffile", module)
    return read_bands(path)


TILE = dict(is_tiled=True, tiledepth=1, tilelength=2**14, tilewidth=2**14)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "holds more than the"),
        (dict(compression=7, jpegheader=b"\xff\xd8"), "its JPEG is in a form that is not read"),
        (dict(compression=7, jpegtables=saved("JPEG", 8)), "its JPEG is in a form that is not read"),
        (TILE, "it has 134,217,728 pixels|it has 402,653,184 bytes"),
        (dict(imagedepth=2**20, shaped=(1, 2**20, 32, 32, SAMPLES)), r"it has 1,073,741,824 pixels"),
    ],
    ids=["bomb", "header", "tables", "tile", "depth"],
)
def test_nothing_is_decoded_of_a_page_that_asks_for_more(
    changes: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tif"
    write_tiff(path, [np.zeros((8, 8, SAMPLES), np.uint8)])
    path.write_bytes(path.read_bytes()[:8] + BOMB + path.read_bytes()[8:])
    monkeypatch.setattr("mm_vitbackbones.data.bands.tiff_pages", lambda path: [(SAMPLES, False)])
    monkeypatch.setattr(limits, "PIXELS", limits.Limit(2**26, "pixels"))
    page = page_of(path, asarray=lambda: pytest.fail("it was decoded"), **changes)
    with pytest.raises(UserError, match=said):
        read_by(page, path, monkeypatch)


def test_a_page_that_holds_what_it_says_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    write_tiff(path, [np.zeros((32, 32, SAMPLES), np.uint8)])
    page = page_of(path, compression=1, databytecounts=(DECLARED,))
    assert read_by(page, path, monkeypatch).shape == (32, 32, SAMPLES)


COMPRESSIONS = ("zlib", "lzma", "zstd", "lzw", "packbits", "jpeg2000", "png", "webp", None)


@pytest.mark.parametrize("tile", [None, (16, 32)])
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_tifffile_reads_all_that_passes(compression: str | None, tile: Any, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs")
    path, given = tmp_path / "a.tif", np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    rows = None if tile else 16
    tifffile.imwrite(path, given, compression=compression, tile=tile, rowsperstrip=rows, photometric="rgb")
    assert np.array_equal(read_bands(path), given)


@pytest.mark.parametrize("kind", TOO_LARGE)
def test_tifffile_is_not_given_what_asks_for_more(kind: str, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    compression, data = TOO_LARGE[kind]
    path = tmp_path / "a.tif"
    given = np.zeros((32, 32, SAMPLES), np.uint8)
    tifffile.imwrite(path, iter([data]), shape=given.shape, dtype=given.dtype, compression=compression, rowsperstrip=32)
    with pytest.raises(UserError, match="one of its strips or tiles holds"):
        read_bands(path)


# ---- headers of other formats


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}])
def test_a_webp_that_is_too_large_is_refused_before_pillow_takes_its_canvas(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.webp"
    Image.new("RGB", (300, 200)).save(path, **options)
    assert why_unreadable(path) == ""
    monkeypatch.setattr(limits, "PIXELS", limits.Limit(59_999, "pixels"))
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("it was opened"))
    for file in (path, io.BytesIO(path.read_bytes())):
        assert too_many_pixels(file).startswith("it has 60,000 pixels, and the limit is 59,999;")


# ---- tags


def with_tags(path: Path, count: int, size: int, big: bool = False, order: str = "<") -> None:
    """A TIFF file of 8 x 8 pixels whose further tags all refer to the same bytes."""
    own = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    own += [(277, 3, 1, 1), (278, 4, 1, 8), (279, 4, 1, 64)]
    entry, counted, link = ("HHQQ", "Q", "Q") if big else ("HHII", "H", "I")
    start = 16 if big else 8
    data = start + struct.calcsize(f"{order}{counted}{link}") + struct.calcsize(order + entry) * (count + len(own))
    tags = own + [(40000 + index, 7, size, data) for index in range(count)]
    out = struct.pack(f"{order}2sH", b"II" if order == "<" else b"MM", 43 if big else 42)
    out += struct.pack(f"{order}HHQ", 8, 0, 16) if big else struct.pack(f"{order}I", 8)
    out += struct.pack(order + counted, len(tags))
    for tag, kind, number, value in tags:
        field = struct.pack(f"{order}{link}", value)
        if kind == 3 and order == ">":
            field = struct.pack(">H", value).ljust(struct.calcsize(link), b"\0")
        out += struct.pack(order + entry[:-1], tag, kind, number) + field
    path.write_bytes(out + struct.pack(order + link, 0) + bytes(max(size, 64)))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("big", [False, True])
def test_tags_that_refer_to_the_same_bytes_over_and_over_are_refused(big: bool, order: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with_tags(path, 1, 2**20, big, order)
    assert why_unreadable(path) == ""
    with_tags(path, 3000, 2**20, big, order)
    assert "it is broken: its tags take 3,145,728,000 bytes, and the file has" in why_unreadable(path)


def test_other_tags_of_a_tiff_file_pass(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for options in ({}, {"description": "x" * 100_000}, {"compression": "tiff_lzw"}, {"big_tiff": True}):
        Image.new("RGB", (200, 100)).save(path, **options)
        assert why_unreadable(path) == ""
    Image.new("L", (9, 9)).save(path, save_all=True, append_images=[Image.new("L", (9, 9))] * 50)
    assert why_unreadable(path) == ""
    path.write_bytes(path.read_bytes()[:5])
    assert why_unreadable(path) == ""  # who decodes it says so
