"""YOLO: a text file per image, with a class and a box or a polygon per line, all from 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from mm_vitbackbones import limits
from mm_vitbackbones.data.converting.collection import Collection, Size, Thing
from mm_vitbackbones.data.converting.sources import files_in, folder_split, images_in, read_lines, read_text
from mm_vitbackbones.data.reading import IMAGES
from mm_vitbackbones.errors import UserError

NAME_FILES = ("classes.txt", "obj.names", "classes.names", "predefined_classes.txt")
"""Files with a class per line, where there is no data.yaml."""

SLACK = 0.01
"""So far a coordinate may lie outside of 0 to 1; more, and it is none of YOLO's."""


def find_yaml(folder: Path) -> Path | None:
    """The file that lists names of classes, the one nearest to the folder's root.

    Raises:
        UserError: a ``data.yaml`` cannot be read.
    """
    found = []
    for path in files_in(folder, (".yaml", ".yml")):
        try:
            content = _loaded(path)
        except UserError:
            if path.stem == "data":
                raise
            continue
        if isinstance(content, dict) and content.get("names"):
            found.append(path)
    return min(found, key=lambda path: (len(path.parts), path.name != "data.yaml", path), default=None)


def find_names(folder: Path) -> Path | None:
    """The text file that lists names of classes."""
    found = [path for path in files_in(folder, (".txt", ".names")) if path.name in NAME_FILES]
    return min(found, key=lambda path: (len(path.parts), path), default=None)


def read(folder: Path, file: Path | None = None) -> Collection:
    """Read a folder of YOLO's, or the data set of a ``data.yaml``.

    Raises:
        UserError: the names of the classes or the images are missing.
    """
    file = file or find_yaml(folder)
    if file and file.suffix.lower() in (".yaml", ".yml"):
        content = _yaml(file)
        classes = _classes(content["names"], file)
        listed = [*_listed(content, file, folder)]
    else:
        content = {}
        file = file or find_names(folder)
        if file is None:
            raise UserError(
                f"{folder}: no data.yaml with names, and no classes.txt or obj.names: write the names of the classes "
                "into classes.txt, a line each, in the order of their numbers"
            )
        classes = read_lines(file)
        listed = [(image, folder_split(image, folder)) for image in images_in(folder)]
    _check_unique(classes, file)
    if not listed:
        raise UserError(f"{file}: no images were found for it in {folder}")
    collection = Collection(classes)
    seen: dict[Path, str | None] = {}
    labelled = 0
    for image, split in listed:
        if image in seen:
            if seen[image] != split:
                collection.notes.left_out("images", f"of {split} that are in {seen[image]}, too", image.name)
            continue
        seen[image] = split
        if (size := collection.size_of(image)) is None:
            continue
        label = label_file(image)
        labelled += label is not None
        if label is None:
            collection.notes.changed("images", "without a label file, taken as images without objects", image.name)
        things = [*_things(label, size, classes, "kpt_shape" in content, collection)] if label else []
        collection.add(image, things, size, split=split)
    if not labelled:
        raise UserError(
            f"{folder}: no label file for any of {len(listed)} images: each images/NAME.jpg needs a "
            "labels/NAME.txt, or NAME.txt next to it"
        )
    return collection


def _yaml(file: Path) -> dict[str, Any]:
    content = _loaded(file)
    if not isinstance(content, dict) or not content.get("names"):
        raise UserError(f"{file} has no names: write names: [cat, dog], in the order of the classes' numbers")
    return content


def _loaded(file: Path) -> Any:
    """The content of a YAML file.

    Raises:
        UserError: it is none, or larger than the limit, with all that it refers to by ``*name``.
    """
    text = read_text(file, limits.CLASS_LIST)
    try:
        content = yaml.safe_load(text)
    except RecursionError:
        raise UserError(f"{file} is no YAML: it is nested too deeply") from None
    except Exception as error:  # such as ValueError, for a day that is none
        raise UserError(f"{file} is no YAML: {' '.join(str(error).split())}") from None
    if why := limits.CLASS_LIST.exceeded(_size(content, {})):
        raise UserError(f"{file} has {why}")
    return content


def _size(content: Any, known: dict[int, float]) -> float:
    """The characters of all that is in a container, each as often as it is referred to."""
    if not isinstance(content, (Mapping, list, set)):
        return len(content) if isinstance(content, (str, bytes)) else 1
    if id(content) not in known:
        known[id(content)] = math.inf  # where it holds itself
        items = [*content.keys(), *content.values()] if isinstance(content, Mapping) else content
        known[id(content)] = 1 + sum(_size(item, known) for item in items)
    return known[id(content)]


def _classes(names: Any, file: Path) -> list[str]:
    if isinstance(names, Mapping):
        keys = sorted(names, key=lambda key: int(key) if str(key).isdigit() else -1)
        if [str(key) for key in keys] != [str(number) for number in range(len(keys))]:
            raise UserError(f"{file}: the keys of names are no numbers from 0 to {len(keys) - 1} without a gap")
        names = [names[key] for key in keys]
    if not isinstance(names, list):
        raise UserError(f"{file}: names is no list: write names: [cat, dog]")
    for number, name in enumerate(names):
        if isinstance(name, (Mapping, list, set)) or (isinstance(name, int) and abs(name) >= 2**63):
            raise UserError(f"{file}: the name of class {number} is of type {type(name).__name__}: write a text")
    return [str(name) for name in names]


def _check_unique(classes: list[str], file: Path) -> None:
    twice = sorted({name for name in classes if classes.count(name) > 1})
    if twice:
        raise UserError(f"{file} names the class {twice[0]!r} more than once: mmdet needs a name for each class")


def _listed(content: Mapping[str, Any], file: Path, folder: Path) -> Iterator[tuple[Path, str | None]]:
    """The images of a data.yaml and the split of each."""
    named = {split: content.get(split) or content.get("valid" if split == "val" else "") for split in _SPLITS}
    if not any(named.values()):
        yield from ((image, folder_split(image, folder)) for image in images_in(folder))
        return
    roots = [file.parent, folder]
    if content.get("path"):
        path = Path(str(content["path"]))
        roots = [file.parent / path, *(file.parent / tail for tail in _tails(path)), *roots]
    for split, entries in named.items():
        for entry in entries if isinstance(entries, list) else [entries] if entries else []:
            place = _place(str(entry), roots)
            if place is None:
                if split == "test":  # exports name it although they hold none
                    continue
                raise UserError(f"{file}: {split}: {entry} is not there (looked from {roots[0]} and {file.parent})")
            if place.is_dir():
                yield from ((image, split) for image in images_in(place))
                continue
            for line in read_lines(place):
                image = _place(line, [place.parent, *roots])
                if image is None or image.suffix.lower() not in IMAGES:
                    raise UserError(f"{place} lists {line}, which is not there")
                yield image, split


_SPLITS = ("train", "val", "test")


def _tails(path: Path) -> list[Path]:
    """The ends of a path, the longest first: it may be one of another machine."""
    parts = [part for part in path.parts if part not in (path.anchor, "..", ".")]
    return [Path(*parts[start:]) for start in range(len(parts))]


def _place(name: str, roots: list[Path]) -> Path | None:
    path = Path(name.replace("\\", "/"))
    for root in roots:
        if (root / path).exists():
            return Path(root / path).resolve() if ".." in path.parts else root / path
    return next((root / tail for root in roots for tail in _tails(path) if (root / tail).exists()), None)


def label_file(image: Path) -> Path | None:
    """The label file of an image: in labels/ where the image is in images/, else next to it."""
    parts = [*image.with_suffix(".txt").parts]
    places = []
    for index in range(len(parts) - 2, -1, -1):
        if parts[index].lower() == "images":
            places.append(Path(*parts[:index], "labels", *parts[index + 1 :]))
    places += [image.with_suffix(".txt"), image.parent / "labels" / f"{image.stem}.txt"]
    return next((place for place in places if place.is_file()), None)


def _things(file: Path, size: Size, classes: list[str], pose: bool, collection: Collection) -> Iterator[Thing]:
    seen = set()
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if not line.split():
            continue
        where = f"{file.name}, line {number}"
        left_out = collection.notes.left_out
        if line in seen:
            left_out("objects", "that are there twice", where)
            continue
        seen.add(line)
        try:
            first, *values = map(float, line.split())
        except ValueError:
            left_out("objects", "on a line that holds no numbers", where)
            continue
        if not first.is_integer() or not 0 <= first < len(classes):
            left_out("objects", f"of a number that is no class (there are 0 to {len(classes) - 1})", where)
            continue
        if pose:
            values = values[:4]
        if len(values) == 5:
            left_out("objects", "with six numbers, as of predictions with a score", where)
            continue
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            left_out("objects", f"with {len(values) + 1} numbers, which is neither a box nor a polygon", where)
            continue
        if not all(-SLACK <= value <= 1 + SLACK for value in values):
            left_out("objects", "with coordinates that are not from 0 to 1", where)
            continue
        scaled = [value * size[index % 2] for index, value in enumerate(values)]
        label = classes[int(first)]
        if len(values) == 4:
            x, y, width, height = scaled
            yield Thing(label, (x - width / 2, y - height / 2, width, height))
        else:
            yield Thing(label, polygons=[scaled])
