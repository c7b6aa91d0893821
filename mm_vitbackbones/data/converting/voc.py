"""Pascal VOC: an XML file per image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from mm_vitbackbones.data.converting.collection import Collection, Size, Thing
from mm_vitbackbones.data.converting.sources import ImageIndex, files_in, folder_split, images_in, read_lines
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.files import why_no_file

NAME_FILES = ("labels.txt", "classes.txt", "class_names.txt", "predefined_classes.txt")
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read(folder: Path) -> Collection:
    """Read all annotations of a folder.

    Classes are in the order of ``classes.txt`` or ``labels.txt``, if there is one, else in alphabetical order.

    Raises:
        UserError: there is no annotation.
    """
    index = ImageIndex(folder)
    lists = _lists(folder)
    found: list[tuple[Path, ElementTree.Element, Path]] = []
    collection = Collection()
    used = set()
    for file in files_in(folder, (".xml",)):
        if kind := why_no_file(file):
            collection.notes.left_out("XML files", "that cannot be read", f"{file.name} is {kind}")
            continue
        try:
            root = ElementTree.parse(file).getroot()
        except (ElementTree.ParseError, OSError, ValueError) as error:
            collection.notes.left_out("XML files", "that cannot be read", f"{file.name}: {error}")
            continue
        if root.tag != "annotation":
            continue
        name = root.findtext("filename", "").strip()
        image = index.find(file.stem, file.parent) or (index.find(name, file.parent) if name else None)
        if image is None:
            collection.notes.left_out("XML files", "without an image", f"{file.name} names {name or 'none'}")
        elif image in used:
            collection.notes.left_out("XML files", "of an image that has one already", file.name)
        else:
            used.add(image)
            found.append((file, root, image))
    if not found:
        raise UserError(f"{folder}: no XML file of Pascal VOC with its image: {_said(collection)}")
    names = {label for _, root, _ in found for thing in root.iter("object") if (label := _name(thing))}
    collection.classes = _classes(folder, names)
    for file, root, image in found:
        split = folder_split(image, folder) or folder_split(file, folder)
        if lists:
            split = lists.get(file.stem)
            if split is None:
                collection.notes.left_out("images", "that no list of ImageSets names", image.name)
                continue
        if (size := collection.size_of(image)) is not None:
            collection.add(image, [*_things(root, file, collection)], size, _size(root), split)
    for image in images_in(folder):
        if image not in used and image.parent.name not in ("SegmentationClass", "SegmentationObject"):
            collection.notes.left_out("images", "without an XML file", image.name)
    return collection


def _said(collection: Collection) -> str:
    return "; ".join(collection.notes.lines(out=True)) or "each image needs an XML file of its name"


def _lists(folder: Path) -> dict[str, str]:
    """The split of each image by the lists in ImageSets, if these have one for training."""
    splits: dict[str, str] = {}
    places = [path.parent for path in files_in(folder, (".txt",)) if path.parent.parent.name == "ImageSets"]
    main = next((place for name in ("Main", "Layout", "Segmentation") for place in places if place.name == name), None)
    if main is None or not (main / "train.txt").is_file():
        return {}
    for split in ("test", "val", "train"):
        if (main / f"{split}.txt").is_file():
            splits |= {line.split()[0]: split for line in read_lines(main / f"{split}.txt")}
    return {name.rpartition("/")[2]: split for name, split in splits.items()}


def _classes(folder: Path, used: set[str]) -> list[str]:
    for name in NAME_FILES:
        if (folder / name).is_file():
            listed = [line for line in read_lines(folder / name) if not line.startswith("__")]
            if used <= {*listed}:
                return [*dict.fromkeys(listed)]
            missing = min(used - {*listed})
            raise UserError(f"{folder / name} lacks the class {missing!r} of the XML files: add it, or delete the file")
    return sorted(used)


def _name(thing: ElementTree.Element) -> str:
    return thing.findtext("name", "").strip()


def _size(root: ElementTree.Element) -> Size | None:
    try:
        return int(root.findtext("size/width", "")), int(root.findtext("size/height", ""))
    except ValueError:
        return None


def _things(root: ElementTree.Element, file: Path, collection: Collection) -> Iterator[Thing]:
    # VOC's own files count pixels from 1 and include the last one. Other programs write corners as they are.
    own = root.findtext("folder", "").startswith("VOC") and "VOC" in root.findtext("source/database", "")
    notes = collection.notes
    for thing in root.iter("object"):
        label = _name(thing)
        if not label:
            notes.left_out("objects", "without a name", file.name)
            continue
        try:
            left, top, right, bottom = (float(thing.findtext(f"bndbox/{corner}", "")) for corner in CORNERS)
        except ValueError:
            notes.left_out("objects", "without a bndbox of four numbers", file.name)
            continue
        box = (left - own, top - own, right - left + own, bottom - top + own)
        difficult = thing.findtext("difficult", "0").strip() not in ("0", "")
        if difficult:
            notes.changed("difficult objects", "are marked as crowds, which mmdet leaves out of training", file.name)
        for _ in thing.findall("part"):
            notes.left_out("parts", "of objects", file.name)
        yield Thing(label, box, [*_polygons(thing)], crowd=difficult)


def _polygons(thing: ElementTree.Element) -> Iterator[list[float]]:
    """Outlines as some programs add them: x1, y1, x2, y2, ... or a pt with x and y for each point."""
    for polygon in thing.findall("polygon"):
        points = [(pt.findtext("x", ""), pt.findtext("y", "")) for pt in polygon.findall("pt")]
        if not points:
            count = sum(each.tag.startswith("x") for each in polygon)
            points = [(polygon.findtext(f"x{i}", ""), polygon.findtext(f"y{i}", "")) for i in range(1, count + 1)]
        try:
            yield [float(value) for point in points for value in point]
        except ValueError:
            continue
