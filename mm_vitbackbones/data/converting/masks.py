"""Masks of semantic segmentation, as colours, as a palette or as numbers, to one channel of class numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from mm_vitbackbones.data.converting.collection import SPLITS, Notes, Size, _orientation, loaded_size
from mm_vitbackbones.data.converting.sources import (
    MASK_FOLDERS,
    OTHER_FOLDERS,
    folder_split,
    images_in,
    read_lines,
)
from mm_vitbackbones.data.converting.writing import put
from mm_vitbackbones.data.mask_files import mask_size, read_mask
from mm_vitbackbones.data.sizes import SIDEWAYS
from mm_vitbackbones.errors import UserError, counted
from mm_vitbackbones.files import to_png, write_whole

ENDINGS = ("_mask", "_masks", "_label", "_labels", "_seg", "_gt", "_l")
"""What the name of a mask may have after that of its image."""

NAME_FILES = ("labelmap.txt", "label_colors.txt", "class_dict.csv", "_classes.csv", "class_names.txt", "classes.txt",
              "labels.txt")  # fmt: skip
"""Files of the classes' names, with colours or without, the first that is there."""

IGNORE = 255
IGNORED_NAMES = ("__ignore__", "ignore", "ignored", "void")
BORDER = (224, 224, 192)
"""VOC's colour of what is ignored, which colour tables do not list."""

LISTED = 6
"""A message names so many colours."""

COLOURS_FIRST = re.compile(r"^(\d+)[\s,;]+(\d+)[\s,;]+(\d+)[\s,;]+(\D.*)$")
COLOURS_LAST = re.compile(r"^(.*?\S)[\s,;:]+(\d+)[\s,;]+(\d+)[\s,;]+(\d+)(?::.*)?$")
NUMBER_FIRST = re.compile(r"^(\d+)\s*,\s*(.+)$")

Colour = tuple[int, int, int]


@dataclass
class Table:
    """Names of classes in the order of their values, and their colours, if known."""

    names: list[str]
    colours: dict[Colour, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.classes = [name for name in self.names if name.lower() not in IGNORED_NAMES]

    def label(self, name: str) -> int:
        return self.classes.index(name) if name in self.classes else IGNORE


@dataclass
class Pair:
    """An image and its mask. ``size`` is that of the image as it loads."""

    image: Path
    mask: Path
    split: str | None
    size: Size = (0, 0)


class MaskCollection:
    """A data set for semantic segmentation."""

    def __init__(self, table: Table | None, pairs: list[Pair], notes: Notes) -> None:
        self.table = table
        self.pairs = pairs
        self.notes = notes
        self.pixels: Counter[int] = Counter()
        self.images_with: dict[str, Counter[int]] = {}

    @property
    def classes(self) -> list[str]:
        return self.table.classes if self.table else []


def is_masks(folder: Path) -> bool:
    """Whether a folder has images and masks of the same names."""
    return bool(_pairs(folder, Notes()))


def read_table(path: Path) -> Table:
    """Names, or names with colours: ``name r g b``, ``r g b name`` or CVAT's and VOC's ``name:r,g,b:parts:actions``.

    Raises:
        UserError: only some lines have colours, or a name or colour is there twice.
    """
    names: list[str] = []
    colours: dict[Colour, str] = {}
    lines = [line for line in read_lines(path) if not line.startswith("#")]
    if path.suffix.lower() == ".csv" and lines and not any(character.isdigit() for character in lines[0]):
        lines = lines[1:]  # the names of the columns
    for line in lines:
        if found := COLOURS_FIRST.match(line):
            *numbers, name = found.groups()
        elif found := COLOURS_LAST.match(line):
            name, *numbers = found.groups()
        else:
            numbers, name = [], line
            if path.suffix.lower() == ".csv" and (found := NUMBER_FIRST.match(line)):
                if int(found[1]) != len(names):
                    raise UserError(f"{path}: the values of the classes are not 0, 1, 2, ...: {line}")
                name = found[2].strip()
        if name in names:
            raise UserError(f"{path} names the class {name!r} more than once")
        if numbers:
            red, green, blue = (int(number) for number in numbers)
            if max(red, green, blue) > 255 or (red, green, blue) in colours:
                raise UserError(f"{path}: the colour of {name!r} is above 255, or that of another class, too: {line}")
            colours[red, green, blue] = name
        if not (name == "__ignore__" and not numbers):  # labelme gives it no number
            names.append(name)
    if colours and len(colours) != len(names):
        raise UserError(f"{path}: {len(colours)} of {len(names)} lines have a colour: write each as name r g b")
    if not names:
        raise UserError(f"{path} names no class")
    return Table(names, colours)


def read(folder: Path, classes: Path | None = None) -> MaskCollection:
    """Find the pairs of image and mask in a folder, and the names of the classes.

    Args:
        classes: the file of the names. By default it is looked for in the folder.

    Raises:
        UserError: there are no pairs.
    """
    notes = Notes()
    pairs = _pairs(folder, notes)
    if not pairs:
        raise UserError(
            f"{folder}: no image with its mask: expected images/NAME.jpg and masks/NAME.png, or JPEGImages/ and "
            "SegmentationClass/"
        )
    places = [folder, *(path for path in sorted(folder.iterdir()) if path.is_dir())]
    found = classes or next((at / name for name in NAME_FILES for at in places if (at / name).is_file()), None)
    return MaskCollection(read_table(found) if found else None, pairs, notes)


def _pairs(folder: Path, notes: Notes) -> list[Pair]:
    images: dict[tuple[str | None, str], Path] = {}
    masks: dict[tuple[str | None, str], Path] = {}
    lists = _lists(folder)
    everything = images_in(folder)
    stems = {(path.parent, path.stem) for path in everything}
    for path in everything:
        folders = [part.lower() for part in path.relative_to(folder).parts[:-1]]
        if any(part in OTHER_FOLDERS for part in folders):
            continue
        ending = next((end for end in ENDINGS if path.stem.lower().endswith(end)), "")
        plain = path.stem[: len(path.stem) - len(ending)]
        split = folder_split(path, folder)
        if any(part in MASK_FOLDERS for part in folders) and "images" not in folders[-1:]:
            key = (split, path.stem)
            if ending and (split, path.stem) not in images:
                masks.setdefault((split, plain), path)
            if key in masks and masks[key].suffix.lower() == ".png":
                continue
            masks[key] = path
        elif ending and (path.parent, plain) in stems:
            masks[split, plain] = path
        else:
            if (split, path.stem) in images:
                notes.left_out("images", "of the same name as another one", path.name)
                continue
            images[split, path.stem] = path
    if not masks:
        return []
    pairs, used = [], set()
    for (split, stem), image in images.items():
        mask = masks.get((split, stem))
        if mask is None and split is None:
            mask = next((masks[other, stem] for other in SPLITS if (other, stem) in masks), None)
        mask = mask or masks.get((None, stem))
        if mask is None:
            notes.left_out("images", "without a mask", image.name)
            continue
        used.add(mask)
        own = lists.get(stem) if lists else split or folder_split(mask, folder)
        if lists and own is None:
            notes.left_out("images", "that no list of ImageSets names", image.name)
            continue
        pairs.append(Pair(image, mask, own))
    for mask in sorted({*masks.values()} - used):
        notes.left_out("masks", "without an image", mask.name)
    return pairs


def _lists(folder: Path) -> dict[str, str]:
    place = folder / "ImageSets" / "Segmentation"
    if not (place / "train.txt").is_file():
        return {}
    splits: dict[str, str] = {}
    for split in ("test", "val", "train"):
        if (place / f"{split}.txt").is_file():
            splits |= {line.split()[0]: split for line in read_lines(place / f"{split}.txt")}
    return splits


# ------------------------------------------------------------------------------------------------- values to labels


@dataclass
class Raw:
    """A mask as it is stored: numbers (H, W), and the colour of each if there is a palette; or colours (H, W, 3)."""

    values: np.ndarray
    palette: dict[int, Colour] | None = None

    def numbers(self) -> list[int]:
        return [int(value) for value in np.unique(self.values)]

    def packed(self) -> np.ndarray:
        """A number for each pixel's colour."""
        packed = self.values[..., 0].astype(np.int32)
        for channel in (1, 2):
            packed *= 256
            packed += self.values[..., channel]
        return packed


def _load(path: Path) -> Raw:
    values, palette = read_mask(path)
    if palette is not None:
        colours = zip(*(palette[channel::3] for channel in range(3)), strict=False)
        return Raw(values, dict(enumerate(colours)))
    if values.ndim == 3 and values.shape[2] in (2, 4):
        if (values[..., -1] < 255).any():
            raise UserError(f"{path} is transparent in places, and it is not clear what this means: save it without")
        values = values[..., 0] if values.shape[2] == 2 else values[..., :3]
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if values.ndim == 2 and values.dtype.kind not in "ui":
        raise UserError(f"{path} holds fractions: a mask holds the whole number of each pixel's class, or its colour")
    return Raw(values)


def _unpack(number: int) -> Colour:
    return number >> 16, number >> 8 & 255, number & 255


class LabelMaker:
    """Turns stored masks into labels, by one rule for the whole data set.

    Args:
        zero_is_ignored: 0 stands for pixels without a class, and 1 for the first class.

    Raises:
        UserError: values or colours that stand for no class.
    """

    def __init__(self, collection: MaskCollection, zero_is_ignored: bool = False) -> None:
        numbers: dict[int, Path] = {}
        colours: dict[Colour, Path] = {}
        shades: dict[Colour, Path] = {}
        plain: dict[int, Path] = {}
        for pair in collection.pairs:
            raw = _load(pair.mask)
            if raw.values.ndim == 3:
                for number in np.unique(raw.packed()):
                    colours.setdefault(_unpack(int(number)), pair.mask)
                continue
            for value in raw.numbers():
                numbers.setdefault(value, pair.mask)
                if raw.palette is None:
                    plain.setdefault(value, pair.mask)
                else:
                    shades.setdefault(raw.palette.get(value, (-1, -1, -1)), pair.mask)
        self.notes = collection.notes
        table = collection.table
        if table is None:
            raise UserError(_unnamed(numbers, colours))
        if len(table.classes) > IGNORE:
            raise UserError(f"{len(table.classes)} classes: a mask of 8 bits holds at most {IGNORE}")
        if zero_is_ignored and table.colours:
            raise UserError("--zero-is-ignored is for masks of numbers: name the class of this colour 'ignore' instead")
        self.table = table
        grey = all(red == green == blue for red, green, blue in colours)
        known = {*table.colours, BORDER}
        self.colours_are_numbers = bool(colours) and grey and not {*colours} <= known
        if self.colours_are_numbers:
            for colour, path in colours.items():
                numbers.setdefault(colour[0], path)
        self.by_palette = bool(table.colours) and bool(shades) and not plain and {*shades} <= known
        as_grey = {(value, value, value) for value in plain}
        too_large = any(value >= len(table.names) and value != IGNORE for value in numbers)
        self.by_shade = bool(table.colours) and bool(plain) and not shades and too_large and as_grey <= known
        if not self.colours_are_numbers and (unknown := {*colours} - known):
            raise UserError(_unknown_colours(unknown, colours, table))
        self._numbers = {} if self.by_palette or self.by_shade else self._map(numbers, zero_is_ignored)
        if BORDER in {*colours, *(shades if self.by_palette else ())} and BORDER not in table.colours:
            where = (colours.get(BORDER) or shades[BORDER]).name
            self.notes.changed("masks", f"with the colour {BORDER} of borders, which is ignored", where)
        for name in table.names:
            if name not in table.classes:
                self.notes.changed("classes", f"named {name!r} are ignored, and no class", "label 255")

    def _map(self, numbers: Mapping[int, Path], zero_is_ignored: bool) -> dict[int, int]:
        names = self.table.names
        values = sorted({*numbers} - {2**16 - 1, -1})
        labels = {2**16 - 1: IGNORE, -1: IGNORE, IGNORE: IGNORE}
        if zero_is_ignored:
            labels[0] = IGNORE
        elif len(names) == 2 and len(values) == 2 and values[0] == 0 and values[1] > 1:
            self.notes.changed("values", f"({values[1]}) of the second class, now 1", numbers[values[1]].name)
            labels[values[1]] = 1
        first = int(zero_is_ignored)
        for value in values:
            if value not in labels:
                if not first <= value < first + len(names):
                    raise UserError(_unknown_value(value, numbers, names, zero_is_ignored))
                labels[value] = self.table.label(names[value - first])
            elif labels[value] == 1:
                labels[value] = self.table.label(names[1])
        return labels

    def __call__(self, path: Path) -> np.ndarray:
        """The labels of a mask, (H, W) uint8, 255 where there is none."""
        raw = _load(path)
        by_colour = {colour: self.table.label(name) for colour, name in self.table.colours.items()}
        if raw.values.ndim == 3 and not self.colours_are_numbers:
            packed = raw.packed()
            mapping = {int(number): by_colour.get(_unpack(int(number)), IGNORE) for number in np.unique(packed)}
            return _mapped(packed, mapping)
        values = raw.values[..., 0] if raw.values.ndim == 3 else raw.values
        if self.by_palette or self.by_shade:
            shade = raw.palette or {value: (value, value, value) for value in raw.numbers()}
            return _mapped(values, {value: by_colour.get(shade[value], IGNORE) for value in raw.numbers()})
        return _mapped(values, self._numbers)


def _mapped(values: np.ndarray, mapping: Mapping[int, int]) -> np.ndarray:
    found, inverse = np.unique(values, return_inverse=True)
    labels = np.array([mapping[int(value)] for value in found], np.uint8)
    return labels[inverse].reshape(values.shape)


def _some(items: Iterable[object]) -> str:
    listed = [*map(str, items)]
    return ", ".join(listed[:LISTED]) + (f" and {len(listed) - LISTED} more" if len(listed) > LISTED else "")


def _unnamed(numbers: Mapping[int, Path], colours: Mapping[Colour, Path]) -> str:
    if colours:
        return (
            f"the masks hold the colours {_some(sorted(colours))}: name each in a file of lines `name r g b`, in the "
            "order of the classes, and give it by --classes FILE"
        )
    if {*numbers} == {0, 255}:
        return (
            "the masks are black and white: write the names of the two classes into a file, a line each, that of black "
            "first, and give it by --classes FILE, or name it classes.txt and put it next to the masks' folder"
        )
    return (
        f"the masks hold the values {_some(sorted(numbers))}: name the classes 0, 1, 2, ... in a file, a line each "
        "(255 is ignored), and give it by --classes FILE"
    )


def _unknown_colours(unknown: set[Colour], colours: Mapping[Colour, Path], table: Table) -> str:
    first = min(unknown)
    if not table.colours:
        return (
            f"{colours[first]} holds colours, such as {_some(sorted(unknown))}, and the file of the classes has none: "
            "write each of its lines as name r g b"
        )
    return (
        f"{colours[first]} and others hold {len(unknown)} colours that no class has, {_some(sorted(unknown))}: add "
        "them to the colour table (the name 'ignore' leaves pixels out); many similar ones come from resizing or JPEG"
    )


def _unknown_value(value: int, numbers: Mapping[int, Path], names: Sequence[str], zero_is_ignored: bool) -> str:
    first = int(zero_is_ignored)
    hint = f"name {counted(value + 1 - first, 'class', 'classes')}"
    if value == len(names) and not zero_is_ignored:
        hint += ", or give --zero-is-ignored, if 0 stands for no class and 1 for the first one"
    return (
        f"{numbers[value]} holds the value {value}, and the {len(names)} classes are {first} to "
        f"{first + len(names) - 1} (255 is ignored): {hint}"
    )


# --------------------------------------------------------------------------------------------------------- writing

SUFFIXES = {".jpeg": ".jpg", ".tiff": ".tif"}


def usable(collection: MaskCollection) -> None:
    """Leave out pairs of different sizes and images that cannot be read."""
    kept = []
    for pair in collection.pairs:
        size = loaded_size(pair.image)
        if size is None:
            collection.notes.left_out("images", "that cannot be read", pair.image.name)
            continue
        pair.size = size
        found = mask_size(pair.mask)
        turned = found == size[::-1] and found != size and _orientation(pair.image) in SIDEWAYS
        if min(size) == 1 or (found != size and not turned):
            why = "whose mask has another size, or is one pixel wide"
            where = f"{pair.image.name}: {size[0]}x{size[1]}, the mask is {found[0]}x{found[1]}"
            collection.notes.left_out("images", why, where)
            continue
        if turned:
            collection.notes.changed("masks", "that are turned, as EXIF data turn the image", pair.mask.name)
        kept.append(pair)
    if not kept:
        raise UserError(f"no image is left: {'; '.join(collection.notes.lines(out=True))}")
    collection.pairs = kept


def write_masks(
    collection: MaskCollection, names: Sequence[str], splits: Sequence[str], make: LabelMaker, out: Path, copy: bool
) -> None:
    """Write ``images/SPLIT/NAME``, ``masks/SPLIT/NAME.png`` and ``classes.txt``."""
    plain = [SUFFIXES.get(Path(name).suffix.lower(), Path(name).suffix.lower()) for name in names]
    one = plain[0] if len({*plain}) == 1 else ".png"
    for pair, name, split, suffix in zip(collection.pairs, names, splits, plain, strict=True):
        place = out / "images" / Path(name).with_suffix("")
        image = place.with_name(f"{place.name}{one}")
        if suffix == one:
            put(pair.image, image, copy)
        else:
            image.parent.mkdir(parents=True, exist_ok=True)
            pixels = cv2.imdecode(np.fromfile(pair.image, np.uint8), cv2.IMREAD_COLOR)
            assert pixels is not None  # its size was read
            write_whole(image, to_png(pixels))
            collection.notes.changed("images", "are written as PNG, as the library takes one suffix for all", name)
        labels = make(pair.mask)
        if labels.shape != pair.size[::-1]:
            orientation = _orientation(pair.image)
            labels = labels.T
            labels = labels[:, ::-1] if orientation in (6, 7) else labels
            labels = labels[::-1] if orientation in (7, 8) else labels
        mask = out / "masks" / Path(name).parent / f"{place.name}.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        write_whole(mask, to_png(np.ascontiguousarray(labels)))
        found, count = np.unique(labels, return_counts=True)
        collection.pixels.update({int(label): int(number) for label, number in zip(found, count, strict=True)})
        collection.images_with.setdefault(split, Counter()).update(int(label) for label in found)
    if {*collection.pixels} <= {IGNORE}:
        raise UserError("no pixel of all masks has a class, all are ignored")
    if len(collection.classes) == 2 and len({*collection.pixels} - {IGNORE}) == 1:
        lacking = next(name for label, name in enumerate(collection.classes) if label not in collection.pixels)
        raise UserError(f"no pixel of all masks is of the class {lacking!r}, so there is nothing to learn")
    write_whole(out / "classes.txt", "".join(f"{name}\n" for name in collection.classes).encode())
