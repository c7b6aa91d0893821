"""Files of annotations, masks and images that are changed by chance: at any byte, in their headers, or by value."""

from __future__ import annotations

import copy
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from helpers import coco
from helpers.bands import write_tiff

SIZES = (0, 1, 2, 255, 16_000, 40_000, 2**16 - 1, 10**6, 2**31 - 1, 2**31, 2**32 - 1)
"""What a number in a header is replaced by."""

EXTREMES: tuple[Any, ...] = (
    *(None, "", [], {}, True, -1, 0.5, "7", [[5]]),
    *(float("nan"), float("-inf"), 1e9, 1e30, -1e308, 2**31, 2**32, 2**63, 2**64, 10**400),
    *("\ud800", "\x1b[31m\r", "a\0b", "x" * 100_000, "../../victim", "/etc/passwd", "0.png", [0] * 10_000),
    *({"size": [30, 40], "counts": [10**18]}, {"size": [10**9, 10**9], "counts": "0"}, [[1e5, 1e5] * 50_000]),
)
"""What a value of an annotation file is replaced by."""


def one_of(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    return choices[rng.integers(len(choices))]


# ---- values


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key within a file."""
    for key in [*(node if isinstance(node, dict) else range(len(node)))]:
        yield node, key
        if isinstance(node[key], (dict, list)):
            yield from places(node[key])


def change_values(content: Any, rng: np.random.Generator, values: Sequence[Any]) -> str:
    """Change one place of a file, and say how.

    Args:
        values: what a value is replaced by.
    """
    by_depth: dict[str, list[tuple[Any, Any]]] = {}
    for node, key in places(content):
        by_depth.setdefault(key if isinstance(key, str) else type(node[key]).__name__, []).append((node, key))
    kinds = by_depth[[*by_depth][rng.integers(len(by_depth))]]  # rare fields as often as coordinates
    node, key = kinds[rng.integers(len(kinds))]
    value, way = node[key], rng.choice(["drop", "retype", "retype", "retype", "duplicate", "reorder", "truncate"])
    if way == "drop":
        del node[key]
    elif way == "retype":
        node[key] = copy.deepcopy(values[rng.integers(len(values))])
    elif way == "duplicate" and isinstance(value, list) and value:
        value.append(copy.deepcopy(value[rng.integers(len(value))]))
    elif way == "duplicate" and isinstance(node, list):
        node.append(copy.deepcopy(value))
    elif way == "reorder" and isinstance(value, list):
        rng.shuffle(value)
    elif way == "truncate" and isinstance(value, (list, str)):
        node[key] = value[: rng.integers(len(value) + 1)]
    else:  # a value of another entry
        other, where = kinds[rng.integers(len(kinds))]
        node[key] = copy.deepcopy(other[where])
    return f"{way} {key!r}: {str(value)[:60]}"


def change_segmentation(content: Any, rng: np.random.Generator) -> None:
    """Give one or all objects of a file another mask: RLE or polygons, right or absurd."""
    chosen = content["annotations"]
    for each in chosen if rng.random() < 0.2 else [one_of(rng, chosen)]:
        make = one_of(rng, (_counts, _text, _text, _polygons))
        each["segmentation"] = make(rng)


def _size(rng: np.random.Generator) -> Any:
    right = [coco.HEIGHT, coco.WIDTH]
    return right if rng.random() < 0.8 else one_of(rng, ([40, 30], [30.0, 40.0], [-30, -40], [30], [2**31] * 2, "x"))


def _counts(rng: np.random.Generator) -> Any:
    whole, count = coco.HEIGHT * coco.WIDTH, int(rng.integers(1, 12))
    cuts = np.sort(rng.integers(0, whole + 1, count))
    runs: list[Any] = np.diff(np.concatenate([[0], cuts, [whole]])).tolist()
    if rng.random() < 0.7:
        odd = (-1, 0.5, 1e9, 2**31, 2**32, 2**32 - 1, 2**63, -(2**31), "3", None, True, float("nan"))
        runs[rng.integers(len(runs))] = one_of(rng, odd)
    if rng.random() < 0.2:
        runs = runs * int(one_of(rng, (2, 1000)))
    return {"size": _size(rng), "counts": runs}


def _text(rng: np.random.Generator) -> Any:
    good = coco.compressed(2, 3, 8, 9)["counts"]
    way = rng.random()
    if way < 0.4:
        text = "".join(chr(48 + code) for code in rng.integers(0, 64, rng.integers(0, 40)))
    elif way < 0.8:
        text = change_bytes(rng, good.encode()).decode("latin-1")
    else:
        text = one_of(rng, (good * 2, "o" * 100 + "0", "oooooo?", "OOOOOO?" * 3, "0" * 10_000, "\u20ac", "/", "p"))
    return {"size": _size(rng), "counts": text}


def _polygons(rng: np.random.Generator) -> Any:
    count = int(one_of(rng, (1, 1, 2, 50)))
    polygons: list[Any] = []
    for _ in range(count):
        points = one_of(rng, (0, 1, 2, 3, 4, 5, 6, 7, 8, 200, 5000))
        spread = one_of(rng, (20, 40, 1e3, 1e5, 1e6, 1e9, 1e300))
        polygons.append((rng.normal(size=int(points)) * spread).tolist())
    if rng.random() < 0.3:
        polygon = one_of(rng, polygons)
        polygon[:0] = [one_of(rng, EXTREMES)]
    return polygons if rng.random() < 0.9 else one_of(rng, (polygons[0], [polygons], {"counts": polygons}))


# ---- bytes


def change_bytes(rng: np.random.Generator, content: bytes) -> bytes:
    """Bytes changed, cut, doubled or taken out."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(len(data))) if data else 0
        way = rng.integers(5)
        if way == 0:
            data[place : place + 1] = bytes([rng.integers(256)])
        elif way == 1:
            del data[place:]
        elif way == 2:
            data[place:place] = data[place : place + int(rng.integers(1, 40))]
        elif way == 3:
            del data[place : place + int(rng.integers(1, 40))]
        else:
            data[place : place + 4] = struct.pack(">I", int(one_of(rng, SIZES)))
    return bytes(data)


def change_json(rng: np.random.Generator, text: str) -> bytes:
    """The bytes of a JSON text changed, or other text put in."""
    data = text.encode()
    if rng.random() < 0.5:
        return change_bytes(rng, data)
    place = int(rng.integers(len(data)))
    pieces = (
        "[" * 100_000,
        '{"a":' * 50_000,
        '"id": 3, ',
        '"',
        "\ufeff",
        "\0",
        "\\u0000",
        "1" * 5000,
        "NaN",
        "//",
        "]}",
    )
    return data[:place] + one_of(rng, pieces).encode() + data[place:]


# ---- images

FORMATS = (("PNG", ".png"), ("JPEG", ".jpg"), ("BMP", ".bmp"), ("TIFF", ".tif"), ("WEBP", ".webp"))


def image(rng: np.random.Generator, kind: str, channels: int = 3) -> bytes:
    """The file of a small image, in now and then an odd form."""
    sides = (16, 20) if rng.random() < 0.8 else [int(side) for side in rng.choice([1, 2, 20, 2600], 2)]
    values = rng.integers(0, 4 if channels == 1 else 256, (*sides, channels), dtype=np.uint8)
    picture = Image.fromarray(values.squeeze(2) if channels == 1 else values)
    options: dict[str, Any] = {}
    if kind == "TIFF":
        options["compression"] = one_of(
            rng, (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg", "tiff_adobe_deflate")
        )
    elif kind == "JPEG":
        options["progressive"] = bool(rng.random() < 0.3)
    elif kind == "PNG" and rng.random() < 0.3:
        picture = picture.convert(
            str(one_of(rng, ("P", "1", "LA", "RGBA", "I;16") if channels == 1 else ("P", "RGBA")))
        )
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def change_header(rng: np.random.Generator, kind: str, content: bytes) -> bytes:
    """An image file with other numbers in its header, as right as a reader wants it to go on."""
    return _HEADERS[kind](rng, bytearray(content))


def png(width: int, height: int, depth: int = 8, color: int = 0) -> bytes:
    """The file of a PNG image of any size, whose pixels are almost none."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return png_file([(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")])


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """The name and the content of each chunk of a PNG file."""
    chunks, at = [], 8
    while at + 8 <= len(data):
        size = struct.unpack_from(">I", data, at)[0]
        chunks.append((bytes(data[at + 4 : at + 8]), bytes(data[at + 8 : at + 8 + size])))
        at += 12 + size
    return chunks


def png_file(chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    framed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def _png_header(rng: np.random.Generator, data: bytearray) -> bytes:
    if rng.random() < 0.2:
        sides = (int(one_of(rng, SIZES)), int(one_of(rng, SIZES)))
        return png(*sides, int(one_of(rng, (1, 8, 16))), int(one_of(rng, (0, 2, 3, 4, 6))))
    chunks = [(name, bytearray(body)) for name, body in png_chunks(data)]
    number = int(rng.integers(len(chunks) - 1))
    body = chunks[number][1]
    if number == 0 and rng.random() < 0.6:
        struct.pack_into(">I", body, int(one_of(rng, (0, 4))), int(one_of(rng, SIZES)))
    elif number == 0:
        body[rng.integers(8, 13)] = int(one_of(rng, (0, 1, 2, 3, 4, 6, 7, 16, 32, 255)))
    elif body:
        body[rng.integers(len(body))] = rng.integers(256)
    if rng.random() < 0.3:
        bomb = zlib.compress(bytes(10**8), 9) if rng.random() < 0.1 else zlib.compress(bytes(100))
        odd = (
            *((b"zTXt", b"a\0\0" + bomb), (b"iCCP", b"a\0\0" + bomb), (b"iTXt", b"a\0\1\0\0\0" + bomb)),
            *((b"tRNS", bytes(300)), (b"PLTE", bytes(3)), (b"eXIf", b"II*\0\xff\xff\xff\xff"), (b"acTL", b"\xff" * 8)),
            *((b"pHYs", b"\xff" * 9), (b"gAMA", bytes(4)), (b"IHDR", bytes(13)), (b"IDAT", b"")),
        )
        chunks.insert(int(rng.integers(1, len(chunks))), one_of(rng, odd))
    return png_file([(kind, bytes(body)) for kind, body in chunks])


def _jpeg_header(rng: np.random.Generator, data: bytearray) -> bytes:
    at = 2
    while data[at + 1] not in (0xC0, 0xC2):
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    way = rng.random()
    if way < 0.6:  # height or width
        struct.pack_into(
            ">H", data, at + 5 + 2 * int(rng.integers(2)), int(one_of(rng, (0, 1, 16_000, 40_000, 65_535)))
        )
    elif way < 0.8:  # precision, components and their sampling
        data[at + int(one_of(rng, (1, 4, 9, 10, 11, 12)))] = int(one_of(rng, (0, 1, 2, 4, 0xC1, 0xC3, 0x44, 255)))
    else:
        data[rng.integers(2, min(len(data), 700))] = rng.integers(256)
    return bytes(data)


def tiff_tag(data: bytearray, tag: int) -> int:
    """Where a tag of a TIFF file's first page is: its number and kind of 2 bytes, its count and value of 4."""
    start = struct.unpack_from("<I", data, 4)[0]
    places = (start + 2 + 12 * index for index in range(struct.unpack_from("<H", data, start)[0]))
    return next(place for place in places if struct.unpack_from("<H", data, place)[0] == tag)


def _tiff_header(rng: np.random.Generator, data: bytearray) -> bytes:
    start = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, start)[0]
    for _ in range(rng.integers(1, 3)):
        at = start + 2 + 12 * int(rng.integers(count))
        way = rng.random()
        if way < 0.6:
            struct.pack_into("<I", data, at + 8, int(one_of(rng, SIZES)))
        elif way < 0.75:
            struct.pack_into("<I", data, at + 4, int(one_of(rng, SIZES)))
        elif way < 0.9:
            struct.pack_into("<H", data, at + 2, int(one_of(rng, (0, 1, 2, 3, 4, 5, 7, 11, 12, 16, 255))))
        else:
            struct.pack_into("<H", data, at, int(one_of(rng, (254, 256, 257, 258, 259, 262, 277, 320, 330, 34665))))
    if rng.random() < 0.1:  # a page that is its own next one
        struct.pack_into("<I", data, start + 2 + 12 * count, int(one_of(rng, (start, 8, 2**32 - 1))))
    return bytes(data)


def _bmp_header(rng: np.random.Generator, data: bytearray) -> bytes:
    at, sizes = int(one_of(rng, (10, 14, 18, 18, 22, 22, 30, 34, 46))), (*SIZES, 12, 40, 108, 124, 4, 6)
    struct.pack_into("<I", data, at, int(one_of(rng, sizes)))
    if rng.random() < 0.3:
        struct.pack_into("<H", data, 28, int(one_of(rng, (0, 1, 4, 8, 16, 32, 64))))
    return bytes(data)


def _webp_header(rng: np.random.Generator, data: bytearray) -> bytes:
    if rng.random() < 0.5:
        struct.pack_into("<I", data, int(rng.integers(4, 30)), int(one_of(rng, SIZES)))
        return bytes(data)
    canvas = struct.pack("<I", int(one_of(rng, SIZES)))[:3] + struct.pack("<I", int(one_of(rng, SIZES)))[:3]
    extended = b"VP8X" + struct.pack("<IB3x", 10, int(rng.integers(256))) + canvas
    body = b"WEBP" + extended + bytes(data[12:])
    return b"RIFF" + struct.pack("<I", len(body)) + body


_HEADERS: dict[str, Callable[[np.random.Generator, bytearray], bytes]] = {
    "PNG": _png_header,
    "JPEG": _jpeg_header,
    "TIFF": _tiff_header,
    "BMP": _bmp_header,
    "WEBP": _webp_header,
}


# ---- bands


def bands(rng: np.random.Generator, path: Path, in_header: bool) -> None:
    """Write a .npy or TIFF file of six bands, with bytes or numbers of its header changed."""
    values = rng.normal(1000, 50, (16, 20, 6)).astype(one_of(rng, (np.float32, np.float32, np.uint16, np.uint8)))
    if path.suffix == ".npy":
        file = io.BytesIO()
        np.save(file, values)
        content = file.getvalue()
        if in_header:
            path.write_bytes(npy_header(rng) + content[-values.nbytes :])
            return
    else:
        write_tiff(path, [values[..., band] for band in range(6)] if rng.random() < 0.7 else [values])
        content = path.read_bytes()
        if in_header:
            path.write_bytes(_tiff_header(rng, bytearray(content)))
            return
    path.write_bytes(change_bytes(rng, content))


def npy_header(rng: np.random.Generator) -> bytes:
    """The header of a .npy file, right or absurd."""

    def maybe(right: Any, *odd: Any) -> Any:
        return right if rng.random() < 0.6 else one_of(rng, odd)

    kind = maybe("<f4", "O", "<f8", "<c8", "|V8", "S4", "<M8[s]", "f4,f4", "", ">i8", "|b1", [("a", "<f4")], 7)
    shape = maybe(
        (16, 20, 6), (), (0, 4, 4), (2**31, 2**31, 6), (2**62,), (-1, 20, 6), (16, 20), (16, 20, 6, 1), (1920,)
    )
    text = repr(
        {"descr": kind, "fortran_order": maybe(False, True, 3), "shape": maybe(shape, "x", (1.5, 2), (True, 2))}
    )
    text = maybe(text, text[:-1], "__import__('os')", "[" * 5000, "{}", text + "\n" * 70, "{1: 2}", "(" * 90 + ")" * 90)
    version = maybe((1, 0), (2, 0), (3, 0), (9, 9))
    size = maybe(len(text) + 1, 0, 2**16 - 1, len(text) + 1)
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version[0] == 1 else "<I", size) + text.encode() + b"\n"


def annotation_file(rng: np.random.Generator, way: str) -> bytes:
    """The content of a COCO JSON file, changed by "values", "masks" or "bytes"."""
    content = coco.content()
    if way == "bytes":
        return change_json(rng, json.dumps(content))
    for _ in range(rng.integers(1, 3)):
        if way == "masks":
            change_segmentation(content, rng)
        else:
            change_values(content, rng, EXTREMES)
    return json.dumps(content).encode()
