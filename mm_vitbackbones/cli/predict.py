"""Detect or segment in images: the implementation of ``tools/predict.py``."""

from __future__ import annotations

import argparse
import json
import sys
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
from mm_vitbackbones.cli.arguments import Parser, add_bands, add_checkpoint, add_config, add_options, add_verbose
from mm_vitbackbones.cli.config import load_config
from mm_vitbackbones.cli.launch import registry_errors
from mm_vitbackbones.cli.model import build_model
from mm_vitbackbones.cli.weights import load_weights
from mm_vitbackbones.data.bands import LOADER
from mm_vitbackbones.data.reading import IMAGES, OF_BANDS, ImageReader, is_own
from mm_vitbackbones.data.values import check_channels
from mm_vitbackbones.engine.console import Console
from mm_vitbackbones.engine.drawing import class_name, displayable, draw_prediction
from mm_vitbackbones.engine.resume import read
from mm_vitbackbones.errors import UserError, shorten
from mm_vitbackbones.files import to_png, write_whole
from mm_vitbackbones.nodes import type_name
from mm_vitbackbones.printing import print
from mm_vitbackbones.progress import track


def main(argv: list[str]) -> None:
    """tools/predict.py. See ``predict_arguments`` for the command line.

    Raises:
        SystemExit: with code 1, at the end, if images could not be read.
    """
    args = predict_arguments(argv)
    with Console(args.verbose):
        _predict(args)


def _predict(args: argparse.Namespace) -> None:
    cfg = load_config(args.config, args.cfg_options)
    out = args.out or Path("predictions", args.config.stem)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is there already, and nothing is overwritten: name another folder, or empty it")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {args.device}: there is no GPU that torch can use")
    libraries.use(libraries.scope_of(cfg))
    pipeline = inference_steps(cfg)
    multichannel = any(type_name(step) == LOADER.rpartition(".")[2] for step in pipeline)
    suffixes = OF_BANDS if multichannel else IMAGES
    images = find_images(args.images, any(map(is_own, pipeline)), suffixes)
    preflight.check_backbone(cfg.model)
    with registry_errors(args.config):
        predictor = Predictor(cfg, pipeline, args.checkpoint, args.device)
    results = Results(predictor.classes)
    out.mkdir(parents=True, exist_ok=True)
    broken = []
    one_by_one = args.verbose or sys.stdout.isatty()
    for index, (path, name) in enumerate(images if one_by_one else track(images, "predicting")):
        try:
            image, data = predictor.load(path, index)
            drawn_on = displayable(image, args.bands)
        except UserError as error:
            broken.append(path)
            print(f"skipped {path}: {error}", file=sys.stderr)
            continue
        sample = predictor(data)
        target = out / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        drawing = draw_prediction(drawn_on, sample, predictor.classes, predictor.palette, args.score_thr)
        write_whole(target, to_png(drawing))
        if "pred_sem_seg" in sample:
            labels = sample.pred_sem_seg.data[0].cpu().numpy().astype(np.uint16)
            small = labels.astype(np.uint8) if labels.max(initial=0) < 256 else labels
            write_whole(out / f"{name}_labels.png", to_png(small))
        results.add(index, path, image.shape[:2], sample, args.score_thr)
        if one_by_one:
            print_log(f"{index + 1}/{len(images)} {path}: {results.said(sample, args.score_thr)}", logger="current")
    if results.annotations or not results.segments:
        write_whole(out / "predictions.json", json.dumps(results.coco()).encode())
    done = len(images) - len(broken)
    print_log(f"{done} of {len(images)} images done: {out}; found: {results.total()}", logger="current")
    if broken:
        print(f"{len(broken)} of {len(images)} images could not be read", file=sys.stderr)
        raise SystemExit(1)


def find_images(
    given: Sequence[Path], any_file: bool = False, suffixes: Sequence[str] = IMAGES
) -> list[tuple[Path, str]]:
    """The image files that paths stand for, and a unique name for the result of each.

    A file that is given is taken. Of a folder, files with the suffix of an image are.

    Args:
        any_file: take every file of a folder that has none of these, except for hidden ones. Only the user's own loader
            knows what it reads.
        suffixes: of the images that are taken of a folder.

    Raises:
        UserError: a path does not exist, or a folder has no images.
    """
    found: list[tuple[Path, str]] = []
    for path in given:
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
            inside = [p for p in files if p.suffix.lower() in suffixes] or (files if any_file else [])
            if not inside:
                raise UserError(f"there is no image in {path} (*{', *'.join(suffixes)})")
            found += [(p, str(p.relative_to(path).with_suffix(""))) for p in inside]
        elif path.exists():
            found.append((path, path.stem))
        else:
            raise UserError(f"there is no image or folder {path}")
    names: dict[str, int] = {}
    unique = []
    for path, name in found:
        names[name] = names.get(name, 0) + 1
        unique.append((path, name if names[name] == 1 else f"{name}_{names[name]}"))
    return unique


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

    def __init__(self, cfg: Config, pipeline: Sequence[Any], checkpoint: Path, device: str) -> None:
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
        self.counts: Counter[str] = Counter()
        """Number of objects of each class; for segmentations, number of images that have the class."""

    def add(self, index: int, path: Path, size: Sequence[int], sample: Any, score_thr: float) -> None:
        self.images.append({"id": index + 1, "file_name": str(path), "height": int(size[0]), "width": int(size[1])})
        self.segments |= "pred_sem_seg" in sample
        self.counts += self.found(sample, score_thr)
        for box, label, score, mask in _instances(sample, score_thr):
            x1, y1, x2, y2 = (round(float(corner), 2) for corner in box)
            annotation = {
                "id": len(self.annotations) + 1,
                "image_id": index + 1,
                "category_id": label + 1,
                "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
                "score": round(score, 5),
                "iscrowd": 0,
                "area": round((x2 - x1) * (y2 - y1), 2),
            }
            if mask is not None:
                annotation |= {"segmentation": _run_lengths(mask), "area": int(mask.sum())}
            self.annotations.append(annotation)

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
    parser.add_argument("--score-thr", type=float, default=0.3, metavar="SCORE", help="leave out lower scores (0.3)")
    add_bands(parser)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda, cuda:1, cpu")
    add_options(parser)
    add_verbose(parser)
    return parser.parse_args(argv)
