"""labelme: a JSON file per image, with shapes by their points. The image may be inside of it."""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as rle_tools

from mm_vitbackbones import limits
from mm_vitbackbones.data.coco_fields import FURTHEST
from mm_vitbackbones.data.converting.coco_export import load
from mm_vitbackbones.data.converting.collection import Collection, Size, Thing
from mm_vitbackbones.data.converting.sources import ImageIndex, files_in, folder_split, images_in, read_lines
from mm_vitbackbones.data.image_files import too_many_pixels
from mm_vitbackbones.errors import UserError

NAME_FILES = ("labels.txt", "classes.txt", "class_names.txt")
CORNERS = 64
"""A circle becomes a polygon of so many corners."""


def is_labelme(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("shapes"), list)


def read(folder: Path) -> Collection:
    """Read all JSON files of labelme in a folder.

    Classes are in the order of ``labels.txt``, if there is one, else in alphabetical order.

    Raises:
        UserError: there is no such file.
    """
    collection = Collection()
    found = {}
    for file in files_in(folder, (".json",)):
        content = load(file)
        if is_labelme(content):
            found[file] = content
        else:
            collection.notes.left_out("JSON files", "that are none of labelme's", file.name)
    if not found:
        raise UserError(f"{folder}: no JSON file with shapes, as labelme writes them")
    index = ImageIndex(folder)
    used = set()
    for file, content in found.items():
        name = str(content.get("imagePath") or "")
        inside = None
        image = index.find(name, file.parent) if name else None
        image = image or index.find(file.stem, file.parent)
        if image is None and content.get("imageData"):
            inside, size = _inside(content["imageData"])
            image = file.with_suffix(Path(name.replace("\\", "/")).suffix.lower() or ".png")
            if size is None:
                collection.notes.left_out("images", "inside of a JSON that cannot be read", file.name)
                continue
        elif image is None:
            collection.notes.left_out("JSON files", "without an image", f"{file.name} names {name or 'none'}")
            continue
        else:
            size = collection.size_of(image)
        if size is None:
            continue
        if image in used:
            collection.notes.left_out("JSON files", "of an image that has one already", file.name)
            continue
        used.add(image)
        try:
            said = int(content.get("imageWidth") or 0), int(content.get("imageHeight") or 0)
        except (TypeError, ValueError, OverflowError):
            said = (0, 0)
        things = _things(content["shapes"], said if min(said) > 0 else size, file, collection)
        collection.add(image, things, size, said, folder_split(file, folder), inside)
    for image in images_in(folder):
        if image not in used:
            collection.notes.left_out("images", "without a JSON file", image.name)
    collection.classes = _classes(folder, {thing.label for sample in collection.samples for thing in sample.things})
    return collection


def _classes(folder: Path, used: set[str]) -> list[str]:
    for name in NAME_FILES:
        if (folder / name).is_file():
            listed = [line for line in read_lines(folder / name) if line not in ("__ignore__", "_background_")]
            if missing := used - {*listed}:
                raise UserError(f"{folder / name} lacks the class {min(missing)!r}: add it, or delete the file")
            return [*dict.fromkeys(listed)]
    return sorted(used)


def _inside(data: Any) -> tuple[bytes | None, Size | None]:
    """The image that a JSON holds: its bytes and its size."""
    try:
        content = base64.b64decode(data)
        if too_many_pixels(io.BytesIO(content)):
            return None, None
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except (TypeError, binascii.Error, ValueError, cv2.error):
        return None, None
    return content, None if pixels is None else (pixels.shape[1], pixels.shape[0])


def _things(shapes: list[Any], size: Size, file: Path, collection: Collection) -> list[Thing]:
    groups: dict[Any, Thing] = {}
    things = []
    for number, shape in enumerate(shapes, 1):
        where = f"{file.name}, shape {number}"
        thing = _thing(shape, size, where, collection)
        if thing is None:
            continue
        group = shape.get("group_id")
        group = group if isinstance(group, (int, str)) else None
        first = groups.get((group, thing.label))
        if group is None or first is None or not (first.polygons and thing.polygons):
            things.append(thing)
            groups.setdefault((group, thing.label), thing)
            continue
        first.polygons += thing.polygons
        collection.notes.changed("shapes", "are one object with others of their group_id", where)
    return things


def _thing(shape: Any, size: Size, where: str, collection: Collection) -> Thing | None:
    notes = collection.notes
    label = shape.get("label") if isinstance(shape, Mapping) else None
    if not isinstance(label, str) or not label:
        notes.left_out("shapes", "without a label", where)
        return None
    if label in ("__ignore__", "_background_"):
        notes.left_out("shapes", f"with the label {label}", where)
        return None
    kind = shape.get("shape_type") or "polygon"
    try:
        points = [(float(x), float(y)) for x, y in shape.get("points") or ()]
    except (TypeError, ValueError, OverflowError):
        notes.left_out("shapes", "whose points are no pairs of numbers", where)
        return None
    if kind == "polygon":
        return Thing(label, polygons=[[value for point in points for value in point]])
    if kind in ("rectangle", "mask") and len(points) >= 2:
        xs, ys = zip(*points, strict=True)
        box = (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
        if kind == "rectangle":
            return Thing(label, box)
        if (mask := _mask(shape.get("mask"), points[0], size)) is not None:
            return Thing(label, mask=mask)
        notes.left_out("shapes", "of kind mask whose pixels cannot be read", where)
        return None
    if kind == "circle" and len(points) == 2:
        (x, y), edge = points
        return Thing(label, polygons=[[*_circle(x, y, math.dist((x, y), edge))]])
    notes.left_out("shapes", f"of kind {kind} with {len(points)} points, which have no area", where)
    return None


def _circle(x: float, y: float, radius: float) -> Iterator[float]:
    for corner in range(CORNERS):
        angle = 2 * math.pi * corner / CORNERS
        yield from (x + radius * math.cos(angle), y + radius * math.sin(angle))


def _mask(data: Any, corner: tuple[float, float], size: Size) -> dict[str, Any] | None:
    """RLE of a mask that covers a part of the image, from ``corner`` on."""
    if limits.PIXELS.exceeded(size[0] * size[1]):  # as the JSON says it
        return None
    try:
        stored = base64.b64decode(data)
        if too_many_pixels(io.BytesIO(stored)):
            return None
        with Image.open(io.BytesIO(stored)) as image:
            part = np.asarray(image.convert("L")) > 0
    except Exception:  # Pillow raises errors of many kinds
        return None
    whole = np.zeros((size[1], size[0]), np.uint8)
    if not all(0 <= value <= FURTHEST for value in corner):
        return None
    x, y = (round(value) for value in corner)
    place = whole[y : y + part.shape[0], x : x + part.shape[1]]
    place[...] = part[: place.shape[0], : place.shape[1]]
    rle: dict[str, Any] = rle_tools.encode(np.asfortranarray(whole))
    return rle
