"""The folder that a conversion makes: whole, or not at all. The source is never written to."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mm_vitbackbones.data.converting.collection import SPLITS, Collection
from mm_vitbackbones.data.folder import to_json
from mm_vitbackbones.errors import OutputError, UserError
from mm_vitbackbones.files import PARTIAL, check_room, make_folder, own_names, why_not, write_whole


def check_out(source: Path, out: Path) -> None:
    """Check that a folder can be made without touching anything of the user's.

    Raises:
        UserError: it holds files, is none, or lies in the source.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UserError(f"{out} is there, and is no folder: choose another OUT")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty, and is left as it is: choose another OUT")
    check_room(out, f"OUT {out}")
    root = source if source.is_dir() else source.parent
    if out.resolve().is_relative_to(root.resolve()) and root.resolve() != Path.cwd().resolve():
        raise UserError(f"{out} lies in {root}, and the source is not changed: choose an OUT elsewhere")


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A new folder to write in, which becomes ``out`` at the end. After an error nothing is left of it.

    Raises:
        OutputError: it cannot be written.
    """
    out = out.absolute()
    make_folder(out.parent)
    try:
        partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=out.parent))
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {why_not(error, out.parent)}") from None
    try:
        partial.chmod(0o755)
        yield partial
        if out.is_dir():
            out.rmdir()  # empty, or this fails
        partial.rename(out)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise OutputError(
                f"{out} cannot be written: {why_not(error, out.parent)}, and nothing is left of it"
            ) from None
        raise


def check_copies(images: Sequence[Path], out: Path) -> None:
    """Check that the disk has room for copies of images.

    Raises:
        OutputError: it has not.
    """
    check_room(out, f"OUT {out}", sum(image.stat().st_size for image in images if image.is_file()))


def put(image: Path, place: Path, copy: bool) -> None:
    """Link an image, or copy it where it is asked for or links are not possible."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        try:
            place.symlink_to(image.resolve())
            return
        except OSError:
            pass
    shutil.copyfile(image, place)


ENDING = ".suffix"
"""As long as the suffix of an image can be."""


def file_names(images: Sequence[Path], splits: Sequence[str], root: Path) -> list[str]:
    """A name for each image, ``train/NAME.jpg``. Images of the same name get that of their folders before it."""
    count = Counter((split, image.stem.lower()) for image, split in zip(images, splits, strict=True))
    names = []
    for image, split in zip(images, splits, strict=True):
        stem = image.stem
        if count[split, stem.lower()] > 1:
            inside = image.relative_to(root).parts if image.is_relative_to(root) else image.parts[-2:]
            stem = "_".join([*inside[:-1], stem])
        names.append(f"{split}/{stem}")
    # As masks are written as NAME.png, no two images may differ by their suffix alone.
    own = own_names(names, [ENDING])
    return [f"{name}{image.suffix[: len(ENDING)]}" for name, image in zip(own, images, strict=True)]


def write_coco(collection: Collection, splits: Sequence[str], root: Path, out: Path, copy: bool) -> None:
    """Write ``annotations/SPLIT.json`` for each split, and the images under ``images/``."""
    categories = [{"id": number, "name": name} for number, name in enumerate(collection.classes, 1)]
    numbers = {category["name"]: category["id"] for category in categories}
    tables: dict[str, dict[str, list[Any]]] = {}
    names = file_names([sample.image for sample in collection.samples], splits, root)
    for sample, split, name in zip(collection.samples, splits, names, strict=True):
        table = tables.setdefault(split, {"images": [], "annotations": [], "categories": categories})
        if sample.content is None:
            put(sample.image, out / "images" / name, copy)
        else:
            (out / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            write_whole(out / "images" / name, sample.content)
        key = len(table["images"]) + 1
        width, height = sample.size
        table["images"].append({"id": key, "file_name": name, "width": width, "height": height})
        for thing in sample.things:
            assert thing.box is not None
            annotation = {
                "id": len(table["annotations"]) + 1,
                "image_id": key,
                "category_id": numbers[thing.label],
                "bbox": [round(value, 4) for value in thing.box],
                "area": thing.area,
                "iscrowd": int(thing.crowd),
            }
            if thing.has_outline:
                rounded = [[round(value, 4) for value in outline] for outline in thing.polygons]
                annotation["segmentation"] = thing.mask or rounded
            table["annotations"].append(annotation)
    (out / "annotations").mkdir()
    for split in SPLITS:
        if split in tables:
            write_whole(out / "annotations" / f"{split}.json", to_json(tables[split]))
