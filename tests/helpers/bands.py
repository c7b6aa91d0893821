"""Images of several bands: TIFF files of any form, and a tiny data set of six bands."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

BANDS = 6


def write_tiff(path: Path, pages: Sequence[np.ndarray], planar: bool = False, copies: int = 0) -> None:
    """Uncompressed pages (height, width) or (height, width, bands), of which the last ``copies`` are smaller copies."""
    out = bytearray(b"II*\0\0\0\0\0")
    link = 4
    for number, page in enumerate(pages):
        height, width, bands = (page := page.reshape(*page.shape[:2], -1)).shape
        planes = [page[..., band] for band in range(bands)] if planar else [page]
        offsets = []
        for plane in planes:
            offsets.append(len(out))
            out += np.ascontiguousarray(plane).tobytes() + b"\0" * (plane.nbytes % 2)
        kind = {"u": 1, "i": 2, "f": 3}[page.dtype.kind]
        values = {
            254: ("I", [1 if number >= len(pages) - copies else 0]),
            256: ("I", [width]),
            257: ("I", [height]),
            258: ("H", [page.dtype.itemsize * 8] * bands),
            259: ("H", [1]),
            262: ("H", [1]),
            273: ("I", offsets),
            277: ("H", [bands]),
            278: ("I", [height]),
            279: ("I", [plane.nbytes for plane in planes]),
            284: ("H", [2 if planar else 1]),
            **({338: ("H", [0] * (bands - 1))} if bands > 1 else {}),
            339: ("H", [kind] * bands),
        }
        tags = b""
        for tag, (code, numbers) in values.items():
            data = struct.pack(f"<{len(numbers)}{code}", *numbers)
            if len(data) > 4:
                out += data
                data = struct.pack("<I", len(out) - len(data))
            tags += struct.pack("<HHI", tag, {"H": 3, "I": 4}[code], len(numbers)) + data.ljust(4, b"\0")
        struct.pack_into("<I", out, link, len(out))
        out += struct.pack("<H", len(values)) + tags
        link = len(out)
        out += b"\0\0\0\0"
    path.write_bytes(out)


def write_six_bands(root: Path, suffix: str = ".npy", size: tuple[int, int] = (48, 64)) -> list[np.ndarray]:
    """Two images of six bands, masks of the labels 0 and 1, and a COCO-format file with one object in each image.

    Returns:
        The images, (height, width, 6), float32.
    """
    rng = np.random.default_rng(0)
    height, width = size
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    images = []
    for index in range(2):
        image = rng.normal(np.arange(BANDS) * 100 + 1000, np.arange(BANDS) * 10 + 20, (height, width, BANDS))
        images.append(image.astype(np.float32))
        if suffix == ".npy":
            np.save(root / "images" / f"{index}.npy", images[-1])
        else:
            write_tiff(root / "images" / f"{index}{suffix}", [images[-1][..., band] for band in range(BANDS)])
        mask = rng.integers(0, 2, (height, width), dtype=np.uint8)
        Image.fromarray(mask).save(root / "masks" / f"{index}.png")
    write_boxes(root, [f"{index}{suffix}" for index in range(2)], size)
    return images


def write_boxes(root: Path, names: Sequence[str], size: tuple[int, int]) -> None:
    """A COCO-format file with one object in each image, ``boxes.json``."""
    height, width = size
    box = [8, 8, 24, 24]
    images = [{"id": i, "file_name": name, "height": height, "width": width} for i, name in enumerate(names)]
    annotations = [
        {"id": i + 1, "image_id": i, "category_id": 1, "bbox": box, "area": 576, "iscrowd": 0}
        for i in range(len(names))
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "tree"}]}
    (root / "boxes.json").write_text(json.dumps(content))
