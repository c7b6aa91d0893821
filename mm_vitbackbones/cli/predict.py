"""Detect or segment in images: the implementation of ``tools/predict.py``."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import shutil
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS, DefaultScope

from mm_vitbackbones import libraries
from mm_vitbackbones.cli import datasets, preflight
from mm_vitbackbones.cli.arguments import (
    Parser,
    add_bands,
    add_checkpoint,
    add_config,
    add_device,
    add_options,
    add_verbose,
    check_new,
    is_filled,
)
from mm_vitbackbones.cli.compiling import add_compile, compile_backbones, report
from mm_vitbackbones.cli.config import load_config
from mm_vitbackbones.cli.journal import NAME, Journal
from mm_vitbackbones.cli.launch import registry_errors
from mm_vitbackbones.cli.model import build_model
from mm_vitbackbones.cli.weights import load_weights
from mm_vitbackbones.data.bands import LOADER
from mm_vitbackbones.data.reading import IMAGES, OF_BANDS, ImageReader, is_own, reason
from mm_vitbackbones.data.values import check_channels
from mm_vitbackbones.engine.console import Console
from mm_vitbackbones.engine.drawing import class_name, displayable, draw_prediction
from mm_vitbackbones.engine.resume import read
from mm_vitbackbones.errors import OutputError, UserError, counted, printable, shorten
from mm_vitbackbones.files import (
    check_room,
    make_folder,
    own_names,
    sha256,
    size_words,
    to_png,
    why_no_file,
    write_whole,
)
from mm_vitbackbones.nodes import type_name
from mm_vitbackbones.printing import print
from mm_vitbackbones.progress import track


def main(argv: list[str]) -> None:
    """tools/predict.py. See ``predict_arguments`` for the command line.

    Raises:
        SystemExit: at the end, with code 1 if images were skipped, and with 130 if the run was interrupted.
    """
    args = predict_arguments(argv)
    with Console(args.verbose):
        _predict(args)


ENDINGS = (".png", "_labels.png")
"""The files of an image: the drawing, and of a segmentation the label map."""

RESULTS = "predictions.json"

SMALLEST = 2**12
"""Bytes of a drawing, at least."""


def _predict(args: argparse.Namespace) -> None:
    cfg = load_config(args.config, args.cfg_options)
    out = args.out or Path("predictions", args.config.stem)
    check_folder(out, args.resume)
    libraries.use(libraries.scope_of(cfg))
    pipeline = inference_steps(cfg)
    multichannel = any(type_name(step) == LOADER.rpartition(".")[2] for step in pipeline)
    suffixes = OF_BANDS if multichannel else IMAGES
    images, broken = find_images(args.images, any(map(is_own, pipeline)), suffixes)
    check_space(out, [path for path, _ in images])
    preflight.check_backbone(cfg.model)
    with registry_errors(args.config):
        predictor = Predictor(cfg, pipeline, args.checkpoint, args.device)
    clock = compile_backbones(predictor.model) if args.compile else None
    make_folder(out)
    settings = {
        "config": hashlib.sha256(repr(cfg.to_dict()).encode(errors="backslashreplace")).hexdigest(),
        "checkpoint": sha256(args.checkpoint) if isinstance(args.checkpoint, Path) else args.checkpoint,
        "--score-thr": args.score_thr,
        "--bands": args.bands,
    }
    journal = Journal(out, settings)
    run = Run(out, journal, predictor, args)
    finished = False
    try:
        with _interruptible():
            run.predict(images, broken)
        finished = True
    except (KeyboardInterrupt, OutputError) as error:
        with contextlib.suppress(OutputError):
            run.write_results()
        stopped = "stopped" if isinstance(error, KeyboardInterrupt) else f"{error}; stopped"
        how = "the same command with --resume goes on"
        message = f"{stopped} after {run.done} of {len(images)} images, which are in {out}: {how}"
        if isinstance(error, OutputError):
            raise OutputError(message) from None
        print(message, file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        journal.close(finished)
    total = len(images) + len(broken) - run.skipped
    if clock is not None:
        report(clock)
    print_log(f"{run.done} of {total} images done: {out}; found: {run.results.total()}", logger="current")
    if broken:
        print(f"{len(broken)} of {total} images could not be read", file=sys.stderr)
        raise SystemExit(1)


def check_folder(out: Path, resume: bool) -> None:
    """Check that results can be written to a folder, which is empty or not there, or holds a run that goes on.

    Raises:
        UserError: otherwise.
    """
    if is_filled(out) and not (resume and (out / NAME).is_file()):
        if (out / NAME).is_file():
            raise UserError(f"--out {out} holds a run that did not end: --resume goes on, or name another folder")
        if resume:
            raise UserError(f"--out {out} holds no run that can go on: name another folder, or leave out --resume")
        check_new(out)


def check_space(out: Path, images: Sequence[Path]) -> None:
    """Check that the disk has room for the least that drawings of so many images take, and warn if it has less than
    the images themselves."""
    check_room(out, f"--out {out}", SMALLEST * len(images))
    place = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    free, size = shutil.disk_usage(place).free, 0
    for path in images:
        with contextlib.suppress(OSError):
            size += path.stat().st_size
    if size > free:
        print_log(
            f"{size_words(free)} are free in {place}, and the images have {size_words(size)}: their drawings may not "
            "fit; if the disk is full, --resume goes on later",
            logger="current",
            level=logging.WARNING,
        )


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Have SIGTERM, which batch systems send before they kill, end a run as Ctrl-C does."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Run:
    """The results of a run, and how far it is.

    Attributes:
        done: images whose results are written.
        skipped: images that are counted twice among those found and those that could not be read.
    """

    def __init__(self, out: Path, journal: Journal, predictor: Predictor, args: argparse.Namespace) -> None:
        self.out, self.journal, self.predictor, self.args = out, journal, predictor, args
        self.results = Results(predictor.classes)
        self.done = self.skipped = 0

    def predict(self, images: Sequence[tuple[Path, str]], broken: list[Path]) -> None:
        """Write the results of all images. Those that cannot be read, or that the model cannot take, are skipped and
        added to ``broken``."""
        args = self.args
        known = self._go_on()
        images = _names_beside(images, known)
        one_by_one = args.verbose or sys.stdout.isatty()
        for index, (path, name) in enumerate(images if one_by_one else track(images, "predicting")):
            if str(path) in known:
                continue
            try:
                sample = self._one(path, name, index)
            except (KeyboardInterrupt, OutputError):
                raise
            except Exception as error:  # a model can raise anything for an image of a strange size
                broken.append(path)
                self.skipped += 1
                print(f"skipped {path}: {reason(error)}", file=sys.stderr)
                if args.verbose and not isinstance(error, UserError):
                    traceback.print_exc()
                continue
            if one_by_one:
                said = self.results.said(sample, args.score_thr)
                print_log(f"{index + 1}/{len(images)} {printable(path)}: {said}", logger="current")
        self.write_results()

    def _one(self, path: Path, name: str, index: int) -> Any:
        predictor, args = self.predictor, self.args
        image, data = predictor.load(path, index)
        drawn_on = displayable(image, args.bands)
        sample = predictor(data)
        drawing = draw_prediction(drawn_on, sample, predictor.classes, predictor.palette, args.score_thr)
        files = {f"{name}{ENDINGS[0]}": drawing}
        if "pred_sem_seg" in sample:
            labels = sample.pred_sem_seg.data[0].cpu().numpy().astype(np.uint16)
            files[f"{name}{ENDINGS[1]}"] = labels.astype(np.uint8) if labels.max(initial=0) < 256 else labels
        for file, content in files.items():
            target = self.out / file
            make_folder(target.parent)
            write_whole(target, to_png(content))
        entry = self.results.entry(index, path, image.shape[:2], sample, args.score_thr)
        self.journal.add({**entry, "name": name, "files": [*files]})
        self.results.take(entry)
        self.done += 1
        return sample

    def _go_on(self) -> dict[str, str]:
        """Take over what an earlier run has finished, if its files are there; returns the images and their names."""
        known = {}
        for entry in self.journal.entries:
            if all((self.out / file).is_file() for file in entry["files"]):
                self.results.take(entry)
                self.done += 1
                known[entry["image"]["file_name"]] = entry["name"]
        if known:
            print_log(f"the run goes on after {counted(len(known), 'image')} of before", logger="current")
        return known

    def write_results(self) -> None:
        if self.results.annotations or not self.results.segments:
            write_whole(self.out / RESULTS, json.dumps(self.results.coco()).encode())


def _names_beside(images: Sequence[tuple[Path, str]], known: Mapping[str, str]) -> list[tuple[Path, str]]:
    """The images with the names that an earlier run gave them, and for the others names that are not taken."""
    if not known:
        return [*images]
    taken = [f"{name}{ending}" for name in known.values() for ending in ENDINGS]
    new = [(path, name) for path, name in images if str(path) not in known]
    own = dict(zip((path for path, _ in new), own_names([name for _, name in new], ENDINGS, taken), strict=True))
    return [(path, known.get(str(path)) or own[path]) for path, _ in images]


def find_images(
    given: Sequence[Path], any_file: bool = False, suffixes: Sequence[str] = IMAGES
) -> tuple[list[tuple[Path, str]], list[Path]]:
    """The image files that paths stand for, with a name for the results of each that no other one has; and those that
    are none, of which a line says why.

    A file that is given is taken. Of a folder, files with the suffix of an image are.

    Args:
        any_file: take every file of a folder that has none of these, except for hidden ones. Only the user's own loader
            knows what it reads.
        suffixes: of the images that are taken of a folder.

    Raises:
        UserError: there is no image at all.
    """
    found: list[tuple[Path, str]] = []
    broken: dict[Path, str] = {}
    empty = []
    for path in given:
        if path.is_dir():
            inside, none = _files_in(path, any_file, suffixes)
            broken |= none
            if not inside and not none:
                empty.append(f"there is no image in {path} (*{', *'.join(suffixes)})")
                broken[path] = "it is a folder without images"
            found += [(p, p.relative_to(path).with_suffix("").as_posix()) for p in inside]
        elif kind := why_no_file(path):
            broken[path] = f"it is {kind}, and no file"
        elif path.exists():
            found.append((path, path.stem))
        else:
            empty.append(f"there is no image or folder {path}")
            broken[path] = "there is no such file or folder"
    once: dict[Path, str] = {}
    for path, name in found:
        once.setdefault(path, name)
    found = [*once.items()]
    if not found and empty:
        raise UserError(empty[0])
    if not found:
        path, why = next(iter(broken.items()))
        raise UserError(f"there is no image in what was given, such as {path}: {why}")
    for path, why in broken.items():
        print(f"skipped {path}: {why}", file=sys.stderr)
    names = own_names([_apart(name) for _, name in found], ENDINGS, [RESULTS, NAME])
    return [(path, name) for (path, _), name in zip(found, names, strict=True)], [*broken]


def _apart(name: str) -> str:
    """A name whose first folder is not that of a file of results."""
    first, slash, rest = name.partition("/")
    return f"{first}_2/{rest}" if slash and first.lower() in (RESULTS, NAME) else name


def _files_in(folder: Path, any_file: bool, suffixes: Sequence[str]) -> tuple[list[Path], dict[Path, str]]:
    """The images in a folder and those inside it, in order, and what has the name of an image and is none."""
    files: list[Path] = []
    none: dict[Path, str] = {}
    denied: list[OSError] = []
    for inside, folders, names in os.walk(folder, onerror=denied.append):
        for name in (*folders, *names):
            path = Path(inside, name)
            is_folder = path.is_dir()
            if path.is_file():
                if not name.startswith("."):
                    files.append(path)
            elif path.suffix.lower() not in suffixes:
                continue
            elif not is_folder:
                kind = why_no_file(path)
                none[path] = f"it is {kind}, and no file" if kind else "it is a link to nothing"
            elif path.is_symlink() or not any(any(names) for _, _, names in os.walk(path)):
                none[path] = "it is a folder without images, or a link to one"
    none |= {Path(error.filename): f"{error.strerror}" for error in denied}
    inside_it = sorted(p for p in files if p.suffix.lower() in suffixes) or (sorted(files) if any_file else [])
    return inside_it, none


def inference_steps(cfg: Config) -> list[Any]:
    """The steps of a config's test pipeline that need no ground truth."""
    steps = _test_dataset(cfg).get("pipeline") or ()
    return [step for step in steps if not type_name(step).endswith("LoadAnnotations")]


def _test_dataset(cfg: Config) -> Mapping[str, Any]:
    dataset = next(iter(datasets.datasets_of(cfg.get("test_dataloader"))), None)
    if dataset is None:
        raise UserError("the config says nothing about testing: it needs test_dataloader, for its pipeline")
    return dataset


class Predictor:
    """The model of a config with the weights of a checkpoint. It maps image files to data samples of mmdet or mmseg.

    Args:
        pipeline: the configs of the steps that load an image and make it an input of the model.
    """

    def __init__(self, cfg: Config, pipeline: Sequence[Any], checkpoint: Path | str, device: str) -> None:
        dataset = _test_dataset(cfg)
        self.scope = libraries.scope_of(cfg)
        self.model = build_model(cfg)
        with DefaultScope.overwrite_default_scope(self.scope):
            preflight.check_types({**dataset, "pipeline": pipeline}, "test_dataloader", self.scope)
            self.classes = datasets.classes_of(dataset)
            meta = {
                **getattr(libraries.look_up(DATASETS, dataset["type"]), "METAINFO", {}),
                **(dataset.get("metainfo") or {}),
            }
        self._preprocessor = cfg.model.get("data_preprocessor") or {}
        self._reader = ImageReader(pipeline)
        palette = meta.get("palette")
        self.palette = palette if self.classes and palette and len(palette) == len(self.classes) else None
        load_weights(self.model, read(checkpoint), checkpoint)
        self.model.to(device).eval()

    def load(self, path: Path, index: int) -> tuple[np.ndarray, Any]:
        """An image as the pipeline loads it, and the model's input.

        Raises:
            UserError: it cannot be loaded, or has another number of channels than the model.
        """
        with DefaultScope.overwrite_default_scope(self.scope):
            image, data = self._reader.whole({"img_path": str(path), "img_id": index})
            channels = getattr(getattr(self.model, "backbone", None), "in_channels", None)
            check_channels(data, self._preprocessor, channels)
        return image, data

    @torch.no_grad()
    def __call__(self, data: Any) -> Any:
        with DefaultScope.overwrite_default_scope(self.scope):
            return self.model.test_step({key: [value] for key, value in data.items()})[0]


class Results:
    """Predictions in COCO's format: images, categories (numbered from 1), and annotations with scores."""

    def __init__(self, classes: Sequence[str] | None) -> None:
        self.classes = classes
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.segments = False
        self._numbers: set[int] = set()
        self.counts: Counter[str] = Counter()
        """Number of objects of each class; for segmentations, number of images that have the class."""

    def entry(self, index: int, path: Path, size: Sequence[int], sample: Any, score_thr: float) -> dict[str, Any]:
        """What is kept of one image, as plain data. ``take`` adds it."""
        image = {"id": index + 1, "file_name": str(path), "height": int(size[0]), "width": int(size[1])}
        annotations = []
        for box, label, score, mask in _instances(sample, score_thr):
            x1, y1, x2, y2 = (round(float(corner), 2) for corner in box)
            annotation = {
                "category_id": label + 1,
                "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
                "score": round(score, 5),
                "iscrowd": 0,
                "area": round((x2 - x1) * (y2 - y1), 2),
            }
            if mask is not None:
                annotation |= {"segmentation": _run_lengths(mask), "area": int(mask.sum())}
            annotations.append(annotation)
        return {
            "image": image,
            "segments": "pred_sem_seg" in sample,
            "counts": dict(self.found(sample, score_thr)),
            "annotations": annotations,
        }

    def take(self, entry: Mapping[str, Any]) -> None:
        """Add what ``entry`` has made. An image with the number of another one, as of a changed list of images, gets
        the next number that is free."""
        number = entry["image"]["id"]
        if number in self._numbers:
            number = max(self._numbers) + 1
        self._numbers.add(number)
        self.images.append({**entry["image"], "id": number})
        self.segments |= entry["segments"]
        self.counts += Counter(entry["counts"])
        for annotation in entry["annotations"]:
            self.annotations.append({"id": len(self.annotations) + 1, "image_id": number, **annotation})

    def coco(self) -> dict[str, Any]:
        categories = [{"id": i, "name": name} for i, name in enumerate(self.classes or (), start=1)]
        return {"images": self.images, "categories": categories, "annotations": self.annotations}

    def said(self, sample: Any, score_thr: float) -> str:
        """What was found in one image, in a few words."""
        counts = self.found(sample, score_thr)
        if "pred_sem_seg" in sample:
            return ", ".join(counts)
        return ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing"

    def found(self, sample: Any, score_thr: float) -> Counter[str]:
        """How many objects of each class were found in one image; for a segmentation, 1 for each class."""
        if "pred_sem_seg" in sample:
            labels = np.unique(sample.pred_sem_seg.data.cpu().numpy()).tolist()
        else:
            labels = [label for _, label, _, _ in _instances(sample, score_thr)]
        return Counter(class_name(label, self.classes) for label in labels)

    def total(self) -> str:
        """What was found in all images, the most frequent first."""
        counts = self.counts.most_common()
        said = [f"{name} in {count}" if self.segments else f"{count} {name}" for name, count in counts]
        return shorten(said) or "nothing"


def _instances(sample: Any, score_thr: float) -> Iterator[tuple[Any, int, float, np.ndarray | None]]:
    """Box, label, score and mask of a sample's objects with at least this score."""
    if "pred_instances" not in sample:
        return
    found = sample.pred_instances.cpu().numpy()
    masks = found.masks if "masks" in found else [None] * len(found.labels)
    for box, label, score, mask in zip(found.bboxes, found.labels, found.scores, masks, strict=True):
        if score >= score_thr:
            yield box, int(label), float(score), mask


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """A mask (H, W) in COCO's run-length code."""
    from pycocotools import mask as coco_mask

    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode()}


def predict_arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="predict.py", description="Detect or segment in images with a trained or published model.")
    add_config(parser)
    add_checkpoint(parser, "as training writes them or as published")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE_OR_FOLDER", help="images, or folders of them")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where the drawings go, and predictions.json in COCO's format (or <image>_labels.png for each "
        "segmentation); predictions/<config name> by default. Nothing is overwritten",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with a run that was interrupted, in the same --out"
    )
    parser.add_argument("--score-thr", type=float, default=0.3, metavar="SCORE", help="leave out lower scores (0.3)")
    add_bands(parser)
    add_device(parser)
    add_compile(parser)
    add_options(parser)
    add_verbose(parser)
    return parser.parse_args(argv)
