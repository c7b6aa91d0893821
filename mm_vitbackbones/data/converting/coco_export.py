"""COCO JSON as CVAT, Label Studio and Roboflow export it: other ids, other paths, categories that are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mm_vitbackbones.data.converting.collection import Collection, Notes, Thing
from mm_vitbackbones.data.converting.sources import ImageIndex, files_in, folder_split, images_in, split_of
from mm_vitbackbones.data.json_files import read_json, why_doubled
from mm_vitbackbones.data.reading import IMAGES
from mm_vitbackbones.errors import UserError

LARGEST = 1e300
"""Larger whole numbers are no numbers in 64 bits."""

KINDS = ("images", "annotations", "categories")


def is_coco(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(content.get(kind), list) for kind in KINDS)


def load(path: Path) -> Any:
    """The content of a JSON file; None if it is none.

    Raises:
        UserError: it holds annotations, and a key is there twice in one entry.
    """
    try:
        content, doubled = read_json(path, encoding="utf-8-sig")
    except (ValueError, OSError, RecursionError, UserError):
        return None
    if doubled and isinstance(content, dict) and ("shapes" in content or "annotations" in content):
        raise UserError(why_doubled(path, doubled))
    return content


def read(folder: Path, file: Path | None = None, keep_crowds: bool = False) -> Collection:
    """Read every COCO JSON of a folder, or one file.

    Args:
        keep_crowds: CVAT writes every object that was painted with the brush as a crowd, which mmdet leaves out of
            training. They are taken as objects, unless this is set.

    Raises:
        UserError: there is none, or its entries cannot be understood.
    """
    collection = Collection()
    contents = {path: load(path) for path in ([file] if file else files_in(folder, (".json",)))}
    contents = {path: content for path, content in contents.items() if is_coco(content) and content["images"]}
    if not contents:
        raise UserError(f"{file or folder}: no JSON with a list of images, annotations and categories")
    root = folder if file is None else file.parent
    splits = {path: split_of(path, root) for path in contents}
    for split in {*splits.values()}:
        same = [path for path in contents if splits[path] == split]
        instances = [path for path in same if "instances" in path.name]
        for path in same:
            if len(instances) == 1 and path not in instances:
                collection.notes.left_out("JSON files", f"next to {instances[0].name}", path.name)
                del contents[path]
    names = {path: _names(content, path, collection.notes) for path, content in contents.items()}
    roots = _roots(contents)
    found = dict.fromkeys(name for path in contents for name in names[path].values())
    collection.classes = [name for name in found if name not in roots]
    for name in found:
        if name in roots:
            collection.notes.left_out("categories", "that only group others and that no object has", name)
    index = ImageIndex(root)
    used: dict[Path, str | None] = {}
    for path, content in contents.items():
        split = splits[path]
        _read_one(path, content, names[path], index, split, collection, used, root, keep_crowds)
    for image in images_in(root):
        if image.resolve() not in used:
            collection.notes.left_out("images", "that no JSON lists", image.name)
    return collection


def _names(content: Mapping[str, Any], path: Path, notes: Notes) -> dict[Any, str]:
    """The name of each category's id."""
    names: dict[Any, str] = {}
    for category in content["categories"]:
        key, name = (category.get("id"), category.get("name")) if isinstance(category, dict) else (None, None)
        if not isinstance(key, (int, str)) or not isinstance(name, str) or not name:
            raise UserError(f"{path}: the category {category!r} has not both an id and a name")
        if names.get(key, name) != name:
            raise UserError(f"{path}: the category id {key!r} stands for {names[key]!r} and for {name!r}")
        if name in names.values() and key not in names:
            notes.changed("categories", "of the same name are one class", f"{name!r} in {path.name}")
        names[key] = name
    return names


def _roots(contents: Mapping[Path, Mapping[str, Any]]) -> set[str]:
    """Names of categories that only group the others, as Roboflow's first one, and that no annotation has."""
    groups, used = set(), set()
    for content in contents.values():
        entries = [entry for entry in content["categories"] if isinstance(entry, dict)]
        groups |= {
            entry["supercategory"]
            for entry in entries
            if _is_key(entry.get("supercategory")) and entry["supercategory"] != entry.get("name")
        }
        names = {entry.get("id"): entry.get("name") for entry in entries}
        used |= {
            names.get(each["category_id"])
            for each in content["annotations"]
            if isinstance(each, dict) and _is_key(each.get("category_id"))
        }
        groups -= {entry["name"] for entry in entries if entry.get("supercategory") not in (None, "", "none", "None")}
    return {str(name) for name in groups - used - {None}}


def _read_one(
    path: Path,
    content: Mapping[str, Any],
    names: Mapping[Any, str],
    index: ImageIndex,
    split: str | None,
    collection: Collection,
    used: dict[Path, str | None],
    root: Path,
    keep_crowds: bool,
) -> None:
    notes = collection.notes
    annotations: dict[Any, list[Mapping[str, Any]]] = {}
    for annotation in content["annotations"]:
        if not isinstance(annotation, dict) or not _is_key(annotation.get("image_id")):
            raise UserError(f"{path}: an annotation has no image_id: {str(annotation)[:80]}")
        annotations.setdefault(annotation["image_id"], []).append(annotation)
    cvat = bool(annotations) and all("attributes" in each for many in annotations.values() for each in many)
    ids = set()
    for entry in content["images"]:
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str) or not _is_key(entry.get("id")):
            raise UserError(f"{path}: the image {str(entry)[:80]} has not both an id and a file_name")
        if entry["id"] in ids:
            raise UserError(f"{path}: several images have the id {entry['id']!r}, so it is not clear whose objects are")
        ids.add(entry["id"])
        image = _find(entry["file_name"], path, root, index)
        if image is None:
            notes.left_out("images", "that were not found, or several of that name", entry["file_name"])
            continue
        if image.resolve() in used:
            other = used[image.resolve()]
            notes.left_out("images", f"that are listed before{f', in {other}' if other else ''}", image.name)
            continue
        if (size := collection.size_of(image)) is None:
            continue
        used[image.resolve()] = split
        said: Any = (entry.get("width"), entry.get("height"))
        own = (int(said[0]), int(said[1])) if _numbers(said) and all(0 < side < 1e6 for side in said) else None
        things = []
        for annotation in annotations.get(entry["id"], []):
            where = f"id {annotation.get('id')!r} in {path.name}"
            thing = _thing(annotation, names, notes, where)
            if thing is None:
                continue
            if thing.crowd and thing.mask and cvat and not keep_crowds:
                notes.changed("brush masks", "that CVAT marks as crowds are objects (--keep-crowds: crowds)", where)
                thing.crowd = False
            things.append(thing)
        collection.add(image, things, size, own, split or folder_split(image, root))
    for key in [key for key in annotations if key not in ids]:
        notes.left_out("objects", "of images that are not listed", f"image_id {key!r}", len(annotations[key]))


def _find(name: str, path: Path, root: Path, index: ImageIndex) -> Path | None:
    plain = name.replace("\\", "/").lstrip("/")
    # Folders of images first: next to the JSON there may be masks of the same names.
    for folder in (path.parent / "images", path.parent.parent / "images", root / "images", path.parent, root):
        if (folder / plain).is_file() and (folder / plain).suffix.lower() in IMAGES:
            return folder / plain
    return index.find(name, path.parent)


def _thing(annotation: Mapping[str, Any], names: Mapping[Any, str], notes: Notes, where: str) -> Thing | None:
    if not _is_key(annotation.get("category_id")) or annotation["category_id"] not in names:
        notes.left_out("objects", "of categories that are not listed", where)
        return None
    if annotation.get("ignore"):
        notes.left_out("objects", "that are marked to be ignored", where)
        return None
    if annotation.get("keypoints"):
        notes.left_out("keypoints", "of objects, which stay", where)
    thing = Thing(names[annotation["category_id"]], crowd=bool(annotation.get("iscrowd")))
    box = annotation.get("bbox")
    if _numbers(box) and len(box) == 4:  # type: ignore[arg-type]
        thing.box = (float(box[0]), float(box[1]), float(box[2]), float(box[3]))  # type: ignore[index]
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        thing.mask = {"size": segmentation.get("size"), "counts": segmentation.get("counts")}
    elif isinstance(segmentation, list):
        outlines = [segmentation] if segmentation and _numbers(segmentation) else segmentation
        if not all(map(_numbers, outlines)):
            notes.left_out("objects", "whose segmentation is no list of numbers", where)
            return None
        thing.polygons = [[float(value) for value in outline] for outline in outlines]
    return thing


def _is_key(value: Any) -> bool:
    """Whether entries can be found by a value."""
    return isinstance(value, (int, float, str))


def _numbers(values: Any) -> bool:
    return isinstance(values, Sequence) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and not abs(value) > LARGEST for value in values
    )
