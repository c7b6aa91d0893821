"""Files of a source: its images, what splits they belong to, its texts. Nothing here writes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from mm_vitbackbones import limits
from mm_vitbackbones.data.reading import IMAGES
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.files import why_no_file
from mm_vitbackbones.limits import Limit

WORDS = {
    "train": ("train", "training", "trainval"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""Names of splits in other programs' folders and files."""


MASK_FOLDERS = (
    "segmentationclasspng", "segmentationclass", "masks", "mask", "labels", "label", "annotations", "ann_dir", "gt",
    "segmentation", "segmentations", "seg",
)  # fmt: skip
"""Names of folders of masks, in other programs' exports."""

OTHER_FOLDERS = ("segmentationobject", "segmentationobjectpng", "segmentationclassvisualization", "visualizations")
"""Folders of what is neither an image nor a mask of classes."""


def files_in(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """The files of these suffixes in a folder and those inside it, hidden ones apart, in order."""

    def walk() -> Iterator[Path]:
        for inside, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
            for name in names:
                if name.lower().endswith((*suffixes,)) and not name.startswith("."):
                    yield Path(inside, name)

    return sorted(walk())


def images_in(folder: Path) -> list[Path]:
    return files_in(folder, IMAGES)


def split_of(path: Path, root: Path) -> str | None:
    """The split that a file's name, or one of its folders below ``root``, stands for."""
    parts = path.relative_to(root).parts if path.is_relative_to(root) else path.parts[-2:]
    for part in reversed(parts):
        words = [word for word in re.split(r"[^a-z]+", part.lower()) if word]
        for split, names in WORDS.items():
            if any(word in names for word in words) and (part != path.name or len(words) <= 4):
                return split
    return None


def folder_split(path: Path, root: Path) -> str | None:
    """The split that one of a file's folders below ``root`` is named after."""
    for part in reversed(path.relative_to(root).parts[:-1] if path.is_relative_to(root) else ()):
        for split, names in WORDS.items():
            if part.lower() in names:
                return split
    return None


class ImageIndex:
    """Images of a folder by the end of their paths, as annotation files name them on another machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._named: dict[str, list[Path]] = {}
        for image in images_in(folder):
            for key in (image.name.lower(), image.stem.lower()):
                self._named.setdefault(key, []).append(image)

    def find(self, name: str, near: Path) -> Path | None:
        """The image of a name: relative to the folder ``near``, else the one whose path ends most alike, masks last.

        Of several that are equally alike, the one in the same folder of ``near``; if there is none, None.
        """
        name = name.replace("\\", "/")
        if name and (near / name).is_file() and (near / name).suffix.lower() in IMAGES:
            return near / name
        wanted = [part for part in PurePosixPath(name).parts if part not in ("/", "..", ".")]
        found = self._named.get(wanted[-1].lower(), []) if wanted else []

        def alike(path: Path) -> tuple[bool, int, int]:
            below = [part.lower() for part in path.relative_to(self._folder).parts[:-1]]
            is_mask = any(part in MASK_FOLDERS or part in OTHER_FOLDERS for part in below) and "images" not in below
            folders = (*path.parts[:-1],)
            same = len([*_common_end(wanted[:-1], folders)])
            return not is_mask, same, len(os.path.commonpath([path.absolute(), near.absolute()]).split(os.sep))

        best = sorted(found, key=alike, reverse=True)
        if len(best) > 1 and alike(best[0]) == alike(best[1]):
            return None
        return best[0] if best else None


def _common_end(one: Sequence[str], other: Sequence[str]) -> Iterator[str]:
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            return
        yield a


def read_text(path: Path, limit: Limit = limits.ANNOTATIONS) -> str:
    """The text of a file.

    Raises:
        UserError: it cannot be read as UTF-8, or is larger than the limit.
    """
    if kind := why_no_file(path):
        raise UserError(f"{path} is {kind}, and no file")
    try:
        if why := limit.exceeded(path.stat().st_size):
            raise UserError(f"{path} has {why}")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text in UTF-8 ({error})") from None


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, without empty ones."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]
