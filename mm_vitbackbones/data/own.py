"""A data set of the user's own in a folder: where its files are, its classes, and the size of its images.

Boxes and masks of objects are files in COCO's format: ``annotations/train.json``, ``annotations/val.json`` and
``images/``. Semantic segmentation has ``images/train``, ``masks/train``, the same of ``val``, and ``classes.txt``.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm_vitbackbones.data.coco import read_coco
from mm_vitbackbones.data.reading import IMAGES
from mm_vitbackbones.data.sizes import header_size
from mm_vitbackbones.errors import UserError, shorten

FILES = {
    "train": ("train.json", "instances_train*.json", "*_train.json", "train*.json"),
    "val": ("val.json", "instances_val*.json", "*_val.json", "val*.json", "valid*.json"),
}
"""The annotation files of each split, by their usual names. The first that is there counts."""

IMAGE_FOLDERS = ("images", "images/{split}", "{split}", "{stem}", "images/{stem}", ".", "annotations")
"""Where a file's images may be. ``stem`` is ``train2017`` for ``instances_train2017.json``."""

SAMPLE = 200
"""How many images of segmentation are measured, at most."""


@dataclass(frozen=True)
class Split:
    """The files of one split. Paths are relative to the folder of the data set, or absolute."""

    labels: str
    """A file in COCO's format, or the folder of the masks."""
    images: str
    """The folder of the images."""
    count: int
    """How many images it has to learn from."""
    suffix: str = ""
    """Of all images, for segmentation."""


@dataclass(frozen=True)
class OwnData:
    """A data set in a folder."""

    root: Path
    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    size: tuple[int, int]
    """The longer and the shorter side of a typical image of the training, in pixels."""
    sizes: frozenset[tuple[int, int]] = frozenset()
    """Those of all images with objects to find, as their files of annotations say."""

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.root.resolve().name


def objects_in(root: Path, files: Mapping[str, Path | None], images: Path | None, masks: bool) -> OwnData:
    """A data set in COCO's format.

    Args:
        root: its folder.
        files: the annotation file of ``train`` and of ``val``; None for the one in ``annotations/``.
        images: the folder of all images; None to look for it.
        masks: whether the objects need masks, too.

    Raises:
        UserError: if a file is not there or cannot be read, or its images are not found.
    """
    _check_folder(root)
    splits: dict[str, Split] = {}
    classes: tuple[str, ...] = ()
    size = (0, 0)
    known: list[Any] = []
    for split in ("train", "val"):
        path = files.get(split) or annotation_file(root, split)
        if not path.is_file():
            raise UserError(f"--{split} {path}: there is no such file")
        content = read_coco(path, split)
        folder = images or _images_of(root, split, path, content["images"])
        _check_images(folder, path, content["images"])
        known += [(each.get("width"), each.get("height")) for each in content["images"]]
        labelled = {annotation.get("image_id") for annotation in content["annotations"]}
        splits[split] = Split(_within(root, path), _within(root, folder), len(labelled))
        if split == "train":
            classes = tuple(str(category.get("name")) for category in content["categories"])
            if not classes:
                raise UserError(f"train: {path} has no categories, so there are no classes to learn")
            size = _typical(known, path)
            if masks and not any(annotation.get("segmentation") for annotation in content["annotations"]):
                raise UserError(f"train: {path} has boxes and no masks (`segmentation`): take --task detection")
    return OwnData(root, classes, splits, size, frozenset((max(each), min(each)) for each in _known(known)))


def segments_in(root: Path) -> OwnData:
    """A data set of images and index masks.

    Raises:
        UserError: if a folder or the list of classes is not there, or a folder's images have several suffixes.
    """
    _check_folder(root)
    names = root / "classes.txt"
    if not names.is_file():
        raise UserError(f"there is no {names}: write the classes into it, one in a line, that of label 0 first")
    try:
        lines = names.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{names} cannot be read ({type(error).__name__}): it is a text in UTF-8") from None
    classes = tuple(line.strip() for line in lines)
    while classes and not classes[-1]:
        classes = classes[:-1]
    if not classes or not all(classes):
        empty = classes.index("") + 1 if classes else 1
        raise UserError(f"{names}: line {empty} is empty, and each line is the name of a label")
    if doubled := sorted({name for name in classes if classes.count(name) > 1}):
        raise UserError(f"{names} names {shorten(doubled, 4)} several times: each label has a name of its own")
    splits = {split: _segments_of(root, split) for split in ("train", "val")}
    images = _files_in(root / splits["train"].images)
    chosen = images[:: max(1, len(images) // SAMPLE)]
    return OwnData(root, classes, splits, _typical([_width_and_height(path) for path in chosen], root))


def annotation_file(root: Path, split: str) -> Path:
    """The annotation file of a split in a folder.

    Raises:
        UserError: if there is none, or it is not clear which it is.
    """
    folder = root / "annotations"
    for pattern in FILES[split]:
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            names = shorten([path.name for path in found], 4)
            raise UserError(f"{folder} has several files for {split} ({names}): name one with --{split} FILE")
        if found:
            return found[0]
    advice = f"name it with --{split} FILE"
    if split == "val":
        advice += ", or split the data: `convert_dataset --val 0.2` does so"
    raise UserError(f"there is no {folder / f'{split}.json'}: {advice}")


def _check_folder(root: Path) -> None:
    if not root.is_dir():
        raise UserError(f"--data {root}: there is no such folder")


def _images_of(root: Path, split: str, path: Path, images: Sequence[Mapping[str, Any]]) -> Path:
    """The folder in which an annotation file's first images are."""
    stem = path.stem.removeprefix("instances_")
    names = [str(image.get("file_name")) for image in images[:3]]
    for pattern in IMAGE_FOLDERS:
        folder = root / pattern.format(split=split, stem=stem)
        if all((folder / name).is_file() for name in names):
            return folder
    raise UserError(f"{split}: {names[0]} of {path} is in none of {root}'s usual folders: name it with --images DIR")


def _check_images(folder: Path, path: Path, images: Sequence[Mapping[str, Any]]) -> None:
    first = folder / str(images[0].get("file_name"))
    if not first.is_file():
        raise UserError(f"{path} lists {images[0].get('file_name')}, and there is no {first}: see --images")


def _segments_of(root: Path, split: str) -> Split:
    images, masks = root / "images" / split, root / "masks" / split
    for folder in (images, masks):
        if not folder.is_dir():
            raise UserError(
                f"there is no folder {folder}: segmentation takes images/{split} and masks/{split} of --data"
            )
    files = _files_in(images)
    suffixes = sorted({path.suffix for path in files})
    if not files:
        raise UserError(f"there is no image in {images} (*{', *'.join(IMAGES)})")
    if len(suffixes) > 1:
        raise UserError(
            f"{images} has images of several kinds ({', '.join(suffixes)}), and MMSegmentation takes one suffix in a "
            "folder: save them all as one kind"
        )
    return Split(_within(root, masks), _within(root, images), len(files), suffixes[0])


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES and path.is_file())


def _width_and_height(path: Path) -> tuple[int, int] | None:
    size = header_size(str(path), "color")
    if size is None:
        from mm_vitbackbones.data.reading import ImageReader, UnreadableImage

        try:
            height, width = ImageReader([{"type": "mmcv.LoadImageFromFile"}])({"img_path": str(path)}).shape[:2]
        except UnreadableImage:
            return None  # the checks of the data report it
        return width, height
    return size[1], size[0]


def _known(sizes: Sequence[Any]) -> list[tuple[int, int]]:
    return [size for size in sizes if size and all(isinstance(side, int) and side > 0 for side in size)]


def _typical(sizes: Sequence[Any], where: Path) -> tuple[int, int]:
    """The medians of the longer and of the shorter sides."""
    known = _known(sizes)
    if not known:
        raise UserError(f"{where}: the size of no image is known")
    return int(statistics.median(map(max, known))), int(statistics.median(map(min, known)))


def _within(root: Path, path: Path) -> str:
    """A path as the config has it: relative to the data set's folder, or absolute."""
    full, folder = path.resolve(), root.resolve()
    return (full.relative_to(folder) if full.is_relative_to(folder) else full).as_posix()
