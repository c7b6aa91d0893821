"""The form that every format is read into: images with their objects, and what was left out or changed, and why."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as rle_tools

from mm_vitbackbones import limits
from mm_vitbackbones.data.coco_fields import FURTHEST
from mm_vitbackbones.data.coco_masks import decode_counts, outline_length, too_long
from mm_vitbackbones.data.image_files import why_unreadable
from mm_vitbackbones.data.sizes import ORIENTATION, SIDEWAYS, header_size
from mm_vitbackbones.errors import UserError, counted
from mm_vitbackbones.files import why_no_file

SPLITS = ("train", "val", "test")

Size = tuple[int, int]
"""Width and height in pixels."""


class Notes:
    """What was left out or changed: how often for each reason, and where first."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, bool], tuple[int, str]] = {}

    def left_out(self, what: str, why: str, where: str, count: int = 1) -> None:
        """``count`` of ``what`` (``objects``, ``images``) are left out."""
        self._add(what, why, True, where, count)

    def changed(self, what: str, why: str, where: str, count: int = 1) -> None:
        """``count`` of ``what`` stay, but not as they were."""
        self._add(what, why, False, where, count)

    def _add(self, what: str, why: str, out: bool, where: str, count: int) -> None:
        before, first = self._found.get((what, why, out), (0, where))
        self._found[what, why, out] = (before + count, first)

    def lines(self, out: bool) -> list[str]:
        """A line for each reason; with ``out`` for what was left out, else for what was changed."""
        return [
            f"{count} {_one(what) if count == 1 else what} {why} ({'first: ' * (count > 1)}{where})"
            for (what, why, is_out), (count, where) in self._found.items()
            if is_out == out
        ]


def _one(what: str) -> str:
    return {"boxes": "box", "classes": "class", "categories": "category"}.get(what, what.removesuffix("s"))


@dataclass
class Thing:
    """One object of an image, in pixels.

    Attributes:
        label: the name of its class.
        box: x, y, width and height; None if the polygons or the mask say it.
        polygons: its outlines, each x1, y1, x2, y2, ...
        mask: RLE as pycocotools reads it, in place of polygons.
        crowd: whether it is a region that is neither trained on nor counted as an error.
    """

    label: str
    box: tuple[float, float, float, float] | None = None
    polygons: list[list[float]] = field(default_factory=list)
    mask: dict[str, Any] | None = None
    crowd: bool = False
    area: float = 0.0

    @property
    def has_outline(self) -> bool:
        return bool(self.polygons or self.mask)


@dataclass
class Sample:
    """An image and its objects. ``size`` is that of the image as it loads. ``content`` is there if it is no file."""

    image: Path
    size: Size
    things: list[Thing]
    split: str | None = None
    content: bytes | None = None


class Collection:
    """A data set for detection that is read in piece by piece.

    Args:
        classes: names in the order of their labels.
    """

    def __init__(self, classes: Sequence[str] = ()) -> None:
        self.classes = [*classes]
        self.samples: list[Sample] = []
        self.notes = Notes()

    def size_of(self, image: Path) -> Size | None:
        """The size of an image as it loads; None, and a note, if it cannot be read."""
        size = loaded_size(image)
        if size is None:
            self.notes.left_out("images", "that cannot be read", image.name)
        return size

    def add(
        self,
        image: Path,
        things: Sequence[Thing],
        size: Size,
        said: Size | None = None,
        split: str | None = None,
        content: bytes | None = None,
    ) -> None:
        """Add an image with those of its objects that mmdet can use.

        Args:
            size: as the image loads.
            said: the size that the objects were drawn in, if known. Where EXIF data turn the image on its side, and
                ``said`` is the size before, the objects are turned, too.
        """
        if said and min(said) > 0 and said != size:
            orientation = _orientation(image) if content is None else 1
            if said != size[::-1] or orientation not in SIDEWAYS:
                why = "whose objects were drawn in an image of another size"
                where = f"{image.name}: {said[0]}x{said[1]}, the image is {size[0]}x{size[1]}"
                self.notes.left_out("images", why, where)
                return
            things = [_turned(thing, orientation, said) for thing in things]
            self.notes.changed("images", "with objects turned, as EXIF data turn the image", image.name)
        kept = [thing for thing in things if self._clean(thing, size, image.name)]
        self.samples.append(Sample(image, size, kept, split, content))

    def _clean(self, thing: Thing, size: Size, where: str) -> bool:
        """Bring an object into its image. False, and a note, for one that mmdet would leave out or confuse."""
        polygons = [outline for outline in thing.polygons if len(outline) >= 6 and len(outline) % 2 == 0]
        if short := len(thing.polygons) - len(polygons):
            self.notes.left_out("polygons", "of fewer than three points", where, short)
        coordinates = [*(thing.box or ()), *(number for each in polygons for number in each)]
        if not all(map(math.isfinite, coordinates)):
            self.notes.left_out("objects", "with a coordinate that is no number", where)
            return False
        if max(map(abs, coordinates), default=0) > FURTHEST:
            self.notes.left_out("objects", f"with a coordinate above {FURTHEST:g} pixels", where)
            return False
        if thing.box and min(thing.box[2:]) < 0:
            self.notes.left_out("objects", "of a width or height below 0", where)
            return False
        if sum(map(outline_length, polygons)) > limits.OUTLINES.value:
            self.notes.left_out("objects", too_long(), where)
            return False
        if thing.polygons and not polygons and thing.box is None:
            self.notes.left_out("objects", "without a usable polygon", where)
            return False
        thing.polygons = [_clamped(outline, size) for outline in polygons]
        if thing.polygons or thing.mask:
            mask = _area(thing, size)
            if mask is None:
                self.notes.left_out("objects", "whose mask is not of the size of their image", where)
                return False
            thing.area, box = mask
            if thing.area <= 0:
                self.notes.left_out("objects", "whose mask holds no pixel", where)
                return False
            thing.box = thing.box or box
        if thing.box is None:
            self.notes.left_out("objects", "without a box", where)
            return False
        x, y, width, height = thing.box
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + width, size[0]), min(y + height, size[1])
        if width > 0 and height > 0 and (right <= left or bottom <= top):
            self.notes.left_out("objects", "outside of their image", where)
            return False
        if min(right - left, bottom - top) < 1:
            self.notes.left_out("objects", "thinner than a pixel", where)
            return False
        if max(left - x, top - y, x + width - right, y + height - bottom) > 1:
            self.notes.changed("boxes", "cut at the edge of their image", where)
        thing.box = (left, top, right - left, bottom - top)
        if not thing.has_outline:
            thing.area = thing.box[2] * thing.box[3]
        return True


def loaded_size(image: Path) -> Size | None:
    """Width and height as the libraries' loader gives the image; None if it cannot be read.

    Raises:
        UserError: it is too large to be loaded.
    """
    if why_no_file(image):
        return None
    if why := why_unreadable(image):
        raise UserError(f"{image}: {why}")
    if size := header_size(str(image), "color"):
        return size[1], size[0]
    try:
        pixels = cv2.imdecode(np.frombuffer(image.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    except (OSError, cv2.error):
        return None
    return None if pixels is None else (pixels.shape[1], pixels.shape[0])


def _orientation(image: Path) -> int:
    """By which an image's loader turns it; 1 for none, and where its EXIF data cannot be read."""
    try:
        with Image.open(image) as opened:
            return int(opened.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow raises errors of many kinds
        return 1


def _turned(thing: Thing, orientation: int, said: Size) -> Thing:
    """An object of the stored image, of width and height ``said``, in the image that EXIF data turn on its side."""
    width, height = said

    def point(x: float, y: float) -> tuple[float, float]:
        return (height - y if orientation in (6, 7) else y), (width - x if orientation in (7, 8) else x)

    def outline(numbers: Sequence[float]) -> list[float]:
        return [value for x, y in zip(numbers[::2], numbers[1::2], strict=False) for value in point(x, y)]

    box, mask = thing.box, thing.mask
    if box is not None:
        (x1, y1), (x2, y2) = point(box[0], box[1]), point(box[0] + box[2], box[1] + box[3])
        box = (min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1))
    if mask is not None and (pixels := _decoded(mask, said)) is not None:
        turned = pixels.T
        turned = turned[:, ::-1] if orientation in (6, 7) else turned
        turned = turned[::-1] if orientation in (7, 8) else turned
        mask = rle_tools.encode(np.asfortranarray(turned))
    return Thing(thing.label, box, [outline(each) for each in thing.polygons], mask, thing.crowd)


def _clamped(outline: Sequence[float], size: Size) -> list[float]:
    return [min(max(value, 0.0), size[index % 2]) for index, value in enumerate(outline)]


def _decoded(mask: dict[str, Any], size: Size) -> np.ndarray | None:
    """The pixels of an RLE; None if it is not of this size or cannot be read."""
    try:
        height, width = (int(side) for side in mask["size"])
        if (width, height) != size:
            return None
        rle = rle_tools.frPyObjects(mask, height, width) if isinstance(mask["counts"], list) else mask
        counts = mask["counts"]
        text = counts.decode() if isinstance(counts, bytes) else counts
        runs = np.array(counts) if isinstance(counts, list) else decode_counts(text)
        if not len(runs) or runs.min() < 0 or runs.sum() != width * height:  # pycocotools writes past its memory
            return None
        return np.asarray(rle_tools.decode(rle))
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        return None


def _area(thing: Thing, size: Size) -> tuple[float, tuple[float, float, float, float]] | None:
    """Pixels of an object's mask, and the box around it. An RLE is written in its compressed form."""
    if thing.mask is None:
        rle = rle_tools.merge(rle_tools.frPyObjects(thing.polygons, size[1], size[0]))
        xs, ys = ([value for each in thing.polygons for value in each[start::2]] for start in (0, 1))
        return float(rle_tools.area(rle)), (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
    pixels = _decoded(thing.mask, size)
    if pixels is None:
        return None
    rle = rle_tools.encode(np.asfortranarray(pixels))
    thing.mask = {"size": [size[1], size[0]], "counts": rle["counts"].decode()}
    x, y, width, height = (float(value) for value in rle_tools.toBbox(rle))
    return float(rle_tools.area(rle)), (x, y, width, height)


def split_samples(splits: Sequence[str | None], share: float | None, seed: int, default: float = 0.2) -> list[str]:
    """The split of each image: its own where the source has one for validation, else by chance.

    Args:
        splits: what the source says of each image, in an order that does not depend on the disk.
        share: of the images for training, the part for validation. If it is given, the source's own split into
            training and validation does not count.

    Raises:
        UserError: the share leaves no image for training.
    """
    if share is None and "val" in splits:
        if not {None, "train"} & {*splits}:
            raise UserError("the source has images for validation and none for training: --val 0.2 splits these")
        return [split or "train" for split in splits]
    pool = [index for index, split in enumerate(splits) if split != "test"]
    count = round((default if share is None else share) * len(pool))
    if share != 0 and len(pool) > 1:
        count = min(max(count, 1), len(pool) - 1)
    if count >= len(pool):
        raise UserError(
            f"the source has {counted(len(pool), 'image')} for training and validation together, which is too few"
        )
    chosen = {*random.Random(seed).sample(pool, count)}
    return ["val" if i in chosen else "test" if split == "test" else "train" for i, split in enumerate(splits)]
