"""Turn data of other programs into the form that the library reads."""

from __future__ import annotations

import argparse
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from mm_vitbackbones.cli.arguments import Parser
from mm_vitbackbones.cli.new_config import write_next_to
from mm_vitbackbones.data.converting import coco_export, labelme, masks, voc, yolo
from mm_vitbackbones.data.converting.collection import SPLITS, Collection, Notes, split_samples
from mm_vitbackbones.data.converting.recognise import FORMATS, recognise
from mm_vitbackbones.data.converting.writing import check_copies, check_out, file_names, whole_folder, write_coco
from mm_vitbackbones.errors import UserError, counted, printable
from mm_vitbackbones.printing import print


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="tools/convert_dataset.py",
        description="Turn data of YOLO, Pascal VOC, CVAT, Label Studio, Roboflow or labelme into COCO JSON, and "
        "colour, palette or index masks into masks of class numbers. The source is not changed.",
    )
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="the folder that was exported, or its data.yaml or JSON"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    parser.add_argument("--format", choices=FORMATS, help="what SOURCE holds (found by its files)")
    parser.add_argument(
        "--val", type=_share, metavar="SHARE", help="part of the images for validation (SOURCE's own split, else 0.2)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images for validation (0)")
    parser.add_argument("--copy", action="store_true", help="copy the images, do not link to them")
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="of masks: a class per line in order, its name or name r g b"
    )
    parser.add_argument("--zero-is-ignored", action="store_true", help="of masks: 0 is no class, and 1 the first one")
    parser.add_argument("--keep-crowds", action="store_true", help="of CVAT: leave brush masks marked as crowds")
    return parser.parse_args(argv)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < 1:
        raise UserError(f"--val {text}: give the part of the images for validation, from 0 to less than 1, such as 0.2")
    return value


def main(argv: list[str]) -> None:
    """Convert a data set and report what was written, changed and left out.

    Raises:
        UserError: the source cannot be understood, or OUT is not empty. Nothing is written then.
    """
    args = arguments(argv)
    if not args.source.exists():
        archive = ""
    elif args.source.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar") and args.source.is_file():
        archive = " is an archive: unpack it first, and give the folder"
    else:
        archive = None
    if archive is not None:
        raise UserError(f"{args.source}{archive or ' is not there'}")
    check_out(args.source, args.out)
    kind = FORMATS[args.format] if args.format else recognise(args.source)
    given = {"--classes": args.classes, "--zero-is-ignored": args.zero_is_ignored} if kind != "masks" else {}
    given |= {"--keep-crowds": args.keep_crowds} if kind != "coco" else {}
    if wrong := [name for name, value in given.items() if value]:
        raise UserError(f"{wrong[0]} does nothing for {kind}: leave it out")
    print(f"{args.source}: {kind}" + ("" if args.format else " (found by its files; --format takes another)"))
    task = _convert_masks(args) if kind == "masks" else _convert_objects(args, kind)
    try:
        print(f"next: {write_next_to(args.out, task)}")
        with_another = "for another head, backbone or weights: "
    except UserError as error:
        print(f"note: no config was written: {error}")
        with_another = "next: "
    out = shlex.quote(str(args.out))
    print(f"{with_another}python -m mm_vitbackbones new_config --data {out} --task {task} --backbone pvt_v2_b2")


def _convert_objects(args: argparse.Namespace, kind: str) -> str:
    """Convert boxes and outlines; returns the task that they are for."""
    folder, file = (args.source.parent, args.source) if args.source.is_file() else (args.source, None)
    if file and kind not in ("yolo", "coco"):
        raise UserError(f"{file} is a file: give the folder")
    readers: dict[str, Callable[[], Collection]] = {
        "yolo": lambda: yolo.read(folder, file),
        "voc": lambda: voc.read(folder),
        "coco": lambda: coco_export.read(folder, file, args.keep_crowds),
        "labelme": lambda: labelme.read(folder),
    }
    collection = readers[kind]()
    things = [thing for sample in collection.samples for thing in sample.things]
    if not things:
        why = "; ".join(collection.notes.lines(out=True)) or "no image has one"
        raise UserError(f"{args.source}: no object is left: {why}")
    collection.samples.sort(key=lambda sample: sample.image.as_posix())
    splits = _splits([sample.split for sample in collection.samples], args)
    check_copies([sample.image for sample in collection.samples] if args.copy else [], args.out)
    with whole_folder(args.out) as out:
        write_coco(collection, splits, folder, out, args.copy)
    outlined = sum(thing.has_outline for thing in things)
    counts: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for sample, split in zip(collection.samples, splits, strict=True):
        counts[split].update(thing.label for thing in sample.things)
    _report(args.out, collection.classes, Counter(splits), counts, "objects")
    _report_notes(collection.notes)
    if 0 < outlined < len(things):
        print(
            f"note: {outlined} of {len(things)} objects have an outline, the others a box alone, which instance "
            "segmentation leaves out: the task is detection"
        )
    return "instance" if outlined == len(things) else "detection"


def _convert_masks(args: argparse.Namespace) -> str:
    if args.source.is_file():
        raise UserError(f"{args.source} is a file: give the folder of images and masks")
    if args.classes and not args.classes.is_file():
        raise UserError(f"--classes {args.classes}: there is no such file")
    collection = masks.read(args.source, args.classes)
    masks.usable(collection)
    make = masks.LabelMaker(collection, args.zero_is_ignored)
    collection.pairs.sort(key=lambda pair: pair.image.as_posix())
    splits = _splits([pair.split for pair in collection.pairs], args)
    names = file_names([pair.image for pair in collection.pairs], splits, args.source)
    check_copies([pair.image for pair in collection.pairs] if args.copy else [], args.out)
    with whole_folder(args.out) as out:
        masks.write_masks(collection, names, splits, make, out, args.copy)
    counts = {
        split: Counter({name: found[label] for label, name in enumerate(collection.classes)})
        for split, found in collection.images_with.items()
    }
    _report(args.out, collection.classes, Counter(splits), counts, "images with it")
    total = sum(collection.pixels.values())
    print(f"ignored: {collection.pixels[masks.IGNORE] / total:.1%} of the pixels")
    _report_notes(collection.notes)
    return "segmentation"


def _splits(own: Sequence[str | None], args: argparse.Namespace) -> list[str]:
    """The split of each image, and a line that says where it is from."""
    splits = split_samples(own, args.val, args.seed)
    if args.val is None and "val" in own:
        rest = f"; images of none, which are for training: {own.count(None):,}" if None in own else ""
        print(f"split: that of the source{rest}")
    else:
        instead = ", and not that of the source" if "val" in own else ""
        print(f"split: {counted(splits.count('val'), 'image')} for validation by chance (--seed {args.seed}){instead}")
    return splits


def _report(
    out: Path, classes: Sequence[str], images: Counter[str], counts: dict[str, Counter[str]], what: str
) -> None:
    """Print how much of each class there is in each split."""
    present = [split for split in SPLITS if images[split]]
    print(f"{out}: " + ", ".join(f"{counted(images[split], 'image')} in {split}" for split in present))
    width = max(len(printable(name)) for name in ["class", *classes])
    print(f"  {'class':<{width}}" + "".join(f"{split:>9}" for split in present) + f"   ({what})")
    for name in classes:
        print(f"  {printable(name):<{width}}" + "".join(f"{counts[split][name]:>9}" for split in present))
    for split in present:
        lacking = [name for name in classes if not counts[split][name]]
        if lacking and split != "test":
            print(f"note: {split} has nothing of {', '.join(lacking[:5])}{' ...' * (len(lacking) > 5)}")
    if "val" not in present:
        print("note: there is no image for validation")


def _report_notes(notes: Notes) -> None:
    for line in notes.lines(out=False):
        print(f"note: {line}")
    for line in notes.lines(out=True):
        print(f"left out: {line}")
