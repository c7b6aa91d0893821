"""`trees`: real aerial photographs with the boxes of tree crowns that people drew.

Four images of the National Ecological Observatory Network (NEON) and their boxes come with DeepForest, under the MIT
licence. pip fetches its wheel as a file, which is unpacked here; nothing is installed or imported. The images are cut
into tiles. The splits are of whole images, never of tiles:

    images/{training,validation}/IMAGE_xLEFT_yTOP.png
    annotations/instances_{training,validation}.json          COCO's format, one category
    LICENSE                                                   DeepForest's

42 tiles with 777 boxes to train on, 12 with 400 to validate: this is no benchmark.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np

from mm_vitbackbones.data.folder import OwnedFolder, to_json
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.files import make_folder, scratch_in, sha256, to_png
from mm_vitbackbones.printing import print

VERSION = 1
REQUIREMENT = "deepforest==2.1.0"
WHEEL = "deepforest-2.1.0-py3-none-any.whl"
WHEEL_SHA256 = "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54"
DOWNLOADS = Path("data/downloads")
"""Where a wheel that the user fetched is looked for."""

LICENSE = "deepforest-2.1.0.dist-info/licenses/LICENSE"
SPLITS = {
    "training": ("2019_YELL_2_528000_4978000_image_crop2", "OSBS_029", "SOAP_061"),
    "validation": ("2019_YELL_2_541000_4977000_image_crop",),
}
ANNOTATIONS_SHA256 = {
    "training": "c1514dac4dbf421913dbc9f9bf4084f90ceb1d356a7d8efe6b1e7cf70f2d822f",
    "validation": "d4e821cb2677a7aca31f90609d74adc51d3d18120692e27b70dcffffd264a8cc",
}
"""SHA-256 of the finished annotation files, which are the same on every machine."""

SIZE = 45_000_000
"""Bytes of the wheel and of the finished data set together, rounded up."""

TILE = 400
"""The side of a tile, in pixels."""

Box = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels; the right and bottom edges lie just outside."""

Tile = tuple[str, np.ndarray, list[Box]]
"""A file name, pixels (H, W, 3) in BGR, and boxes relative to the tile."""


# ------------------------------------------------------------------------------------------------------------- tiles


def starts(length: int, tile: int = TILE) -> list[int]:
    """Where the tiles along a side begin. The last one is moved back to end with the side.

    Raises:
        ValueError: the side is shorter than a tile.
    """
    if length < tile:
        raise ValueError(f"a side of {length} px holds no tile of {tile} px")
    return sorted({min(start, length - tile) for start in range(0, length, tile)})


def boxes_in_tile(boxes: Sequence[Box], left: int, top: int, tile: int = TILE) -> list[Box]:
    """The boxes of which at least half the area lies in a tile, clipped to it, relative to its corner."""
    kept = []
    for x1, y1, x2, y2 in boxes:
        clipped = max(x1 - left, 0), max(y1 - top, 0), min(x2 - left, tile), min(y2 - top, tile)
        width, height = clipped[2] - clipped[0], clipped[3] - clipped[1]
        if width > 0 and height > 0 and 2 * width * height >= (x2 - x1) * (y2 - y1):
            kept.append(clipped)
    return kept


def read_voc(xml: bytes) -> list[Box]:
    """The boxes of a Pascal VOC file, sorted. Its corners are taken as they are, and its classes are all trees."""
    boxes = []
    for box in ElementTree.fromstring(xml).iter("bndbox"):
        x1, y1, x2, y2 = (int(box.findtext(key, "")) for key in ("xmin", "ymin", "xmax", "ymax"))
        boxes.append((x1, y1, x2, y2))
    return sorted(boxes)


def cut(name: str, image: np.ndarray, boxes: Sequence[Box]) -> list[Tile]:
    """The tiles of an image (H, W, 3) that hold boxes, row by row."""
    tiles: list[Tile] = []
    for top in starts(image.shape[0]):
        for left in starts(image.shape[1]):
            inside = boxes_in_tile(boxes, left, top)
            if inside:
                pixels = image[top : top + TILE, left : left + TILE]
                tiles.append((f"{name}_x{left:04}_y{top:04}.png", pixels, inside))
    return tiles


def to_coco(tiles: Sequence[Tile]) -> dict[str, Any]:
    """COCO's annotations of tiles."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for name, pixels, boxes in tiles:
        height, width = pixels.shape[:2]
        images.append({"id": len(images) + 1, "file_name": name, "width": width, "height": height})
        for x1, y1, x2, y2 in boxes:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": len(images),
                    "category_id": 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    info = {"description": "trees: NEON photographs with boxes, from DeepForest 2.1.0 (MIT licence), no benchmark"}
    categories = [{"id": 1, "name": "tree", "supercategory": "plant"}]
    return {"info": info, "images": images, "annotations": annotations, "categories": categories}


# -------------------------------------------------------------------------------------------------------------- disk


def prepare(root: str | Path) -> bool:
    """Fetch the photographs and write the data set into the folder `root`, and print each step. Takes some seconds.

    Returns:
        False if everything was there already.

    Raises:
        UserError: `root` holds files that were not made here; the wheel cannot be fetched; or it is not the pinned one.
    """
    folder = OwnedFolder(root, "trees", VERSION)
    if folder.is_current():
        return False
    folder.check_room(SIZE)
    make_folder(folder.root.absolute().parent)
    with scratch_in(folder.root.absolute().parent) as scratch, zipfile.ZipFile(fetch(scratch)) as wheel:
        files = {"LICENSE": wheel.read(LICENSE)}
        for split, names in SPLITS.items():
            print(f"cutting {', '.join(names)} into tiles for {split}", flush=True)
            files |= make_split(split, [tile for name in names for tile in read_tiles(wheel, name)])
    folder.claim(files)
    for name, content in files.items():
        folder.write(name, content)
    folder.finish()
    return True


def fetch(scratch: Path) -> Path:
    """DeepForest's wheel: the user's, if there is one in `DOWNLOADS`, or else fetched by pip into the folder `scratch`.

    Raises:
        UserError: pip could not fetch it, or it is not the pinned file.
    """
    wheel = DOWNLOADS / WHEEL
    if not wheel.exists():
        wheel = scratch / WHEEL
        print(f"fetching {WHEEL} (21 MB) with pip", flush=True)
        options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--retries=2", "--quiet"]
        command = [sys.executable, "-m", "pip", "download", *options, f"--dest={scratch}", REQUIREMENT]
        environment = {**os.environ, "TMPDIR": str(scratch)}  # pip unpacks there, and /tmp may be small
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if result.returncode or not wheel.exists():
            said = result.stderr.strip().splitlines() or ["no output from pip"]
            raise UserError(
                f"pip could not fetch {REQUIREMENT} ({said[-1]}): get {WHEEL} from the Python package "
                f"index on another machine, put it in {DOWNLOADS.absolute()}, and run this again"
            )
    found = sha256(wheel)
    if found != WHEEL_SHA256:
        raise UserError(f"{wheel} is damaged or not the published file: its SHA-256 is {found}, not {WHEEL_SHA256}")
    return wheel


def read_tiles(wheel: zipfile.ZipFile, name: str) -> list[Tile]:
    """The tiles of one of the wheel's images."""
    stem = f"deepforest/data/{name}"
    image = cv2.imdecode(np.frombuffer(wheel.read(f"{stem}.png"), np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return cut(name, image, read_voc(wheel.read(f"{stem}.xml")))


def make_split(split: str, tiles: Sequence[Tile]) -> dict[str, bytes]:
    """The files of a split, by name, relative to the data set's folder."""
    annotations = to_json(to_coco(tiles))
    found = hashlib.sha256(annotations).hexdigest()
    if found != ANNOTATIONS_SHA256[split]:
        raise UserError(f"the annotations of {split!r} came out other than they should ({found}): please report this")
    files = {f"images/{split}/{name}": to_png(pixels) for name, pixels, _ in tiles}
    return {**files, f"annotations/instances_{split}.json": annotations}
