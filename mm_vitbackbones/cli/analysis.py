"""The page of an analysis, from a config and predictions: what ``analyze`` and ``test --analyze`` share."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.registry import TASK_UTILS, TRANSFORMS

from mm_vitbackbones import libraries
from mm_vitbackbones.analysis import comparing, matchable, report
from mm_vitbackbones.analysis.detection import Detection
from mm_vitbackbones.analysis.page import Page
from mm_vitbackbones.analysis.report import Picture, Report
from mm_vitbackbones.analysis.segmentation import IGNORED, Collector, Segmentation
from mm_vitbackbones.analysis.training import once, read_training
from mm_vitbackbones.canvas import VERMILION, bgr, white
from mm_vitbackbones.cli import found
from mm_vitbackbones.cli.arguments import check_new
from mm_vitbackbones.cli.datasets import annotation_file, classes_of, datasets_of
from mm_vitbackbones.cli.evaluators import evaluators_of
from mm_vitbackbones.data.coco import read_coco
from mm_vitbackbones.data.reading import ImageReader, list_dataset
from mm_vitbackbones.engine.drawing import displayable
from mm_vitbackbones.errors import UserError, printable
from mm_vitbackbones.files import check_room, to_jpeg, to_png
from mm_vitbackbones.nodes import nodes, type_name
from mm_vitbackbones.progress import track

LONG_SIDE = 800
"""Images on the page are made smaller than this."""

QUALITY = 80
"""Of their JPEG files."""

SMALLEST = 2**20
"""Bytes of an analysis, at least."""

CELL = 8
"""Pixels of a cell of the finest level, where the config does not say."""


def check_folder(out: Path) -> None:
    """Check that an analysis can be written to a folder that is empty or not there.

    Raises:
        UserError: otherwise.
    """
    check_new(out)
    check_room(out, f"--out {out}", SMALLEST)


class Data:
    """The test data of a config.

    Attributes:
        classes: their names.
        truth: of a detector, the ground truth in COCO's format.
        categories: of a detector, the id of each label.

    Raises:
        UserError: there is no ground truth of objects or of label maps.
    """

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        scope = libraries.scope_of(cfg)
        if scope not in libraries.LIBRARIES:
            raise UserError(f"a model of {scope} cannot be analysed: detectors of mmdet and segmentors of mmseg can")
        if any(type_name(each) == "CocoPanopticMetric" for each in evaluators_of(cfg, "test")):
            raise UserError("panoptic segmentation cannot be analysed: boxes, masks and label maps can")
        self.segments = scope == "mmseg"
        listed = [*datasets_of(cfg.get("test_dataloader"))]
        if not listed:
            raise UserError("the config says nothing about testing: it needs test_dataloader")
        self._configs = listed
        self._sets = [list_dataset(each, "test_dataloader") for each in listed]
        names = (getattr(self._sets[0], "metainfo", None) or {}).get("classes") or classes_of(listed[0])
        if not names:
            raise UserError("test_dataloader: the data set has no classes: set metainfo=dict(classes=(...))")
        self.classes = [*map(str, names)]
        self._steps: dict[int, list[Any]] = {}
        if not self.segments:
            self.truth = self._truth()
            wanted = {*self.classes}
            self.categories = [each["id"] for each in self.truth["categories"] if each["name"] in wanted]

    def _truth(self) -> Mapping[str, Any]:
        """What mmdet's CocoMetric measures by; of other data sets, their own lists of objects."""
        metrics = [each for each in evaluators_of(self.cfg, "test") if type_name(each) == "CocoMetric"]
        named = metrics[0].get("ann_file") if metrics else None
        path = Path(named) if isinstance(named, str) and "://" not in named else annotation_file(self._configs[0])
        if path is not None and path.suffix == ".json" and (named or len(self._sets) == 1):
            content = read_coco(path, "test_evaluator", labelled=True)
            if metrics and metrics[0].get("sort_categories"):
                content = {**content, "categories": sorted(content["categories"], key=lambda each: each["id"])}
            return content
        return self._listed()

    def _listed(self) -> dict[str, Any]:
        images, annotations = [], []
        for _, info in self.infos():
            size = {"height": info.get("height"), "width": info.get("width")}
            images.append({"id": info["img_id"], "file_name": info["img_path"], **size})
            for one in info.get("instances", ()):
                x1, y1, x2, y2 = map(float, one["bbox"])
                entry = {"image_id": info["img_id"], "category_id": int(one["bbox_label"]) + 1}
                entry |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
                entry |= {"iscrowd": int(bool(one.get("ignore_flag")))}
                annotations.append(entry | ({"segmentation": one["mask"]} if "mask" in one else {}))
        categories = [{"id": label, "name": name} for label, name in enumerate(self.classes, start=1)]
        return {"images": images, "annotations": annotations, "categories": categories}

    def infos(self) -> Iterator[tuple[Mapping[str, Any], dict[str, Any]]]:
        """The config of its data set, and what is known of it, for each image."""
        for config, dataset in zip(self._configs, self._sets, strict=True):
            for index in range(len(dataset)):
                yield config, dataset.get_data_info(index)

    @functools.cached_property
    def _by_key(self) -> dict[Any, tuple[Mapping[str, Any], dict[str, Any]]]:
        key = "img_path" if self.segments else "img_id"
        return {info.get(key): (config, info) for config, info in self.infos()}

    @functools.cached_property
    def _entries(self) -> dict[Any, Mapping[str, Any]]:
        return {} if self.segments else {each["id"]: each for each in self.truth["images"]}

    def name(self, key: Any) -> str:
        """The file name of an image by its id, or by its path."""
        _, info = self._by_key.get(key, ({}, {}))
        return printable(Path(str(info.get("img_path") or self._entries.get(key, {}).get("file_name") or key)).name)

    def picture(self, key: Any) -> Picture:
        """An image by its id, or by its path."""
        config, info = self._by_key.get(key, ({}, {}))
        entry = self._entries.get(key, {})
        size = int(entry.get("height") or 1), int(entry.get("width") or 1)
        if not info:
            return Picture(self.name(key), None, size)
        try:
            image = displayable(_reader(config)(info))
        except Exception:  # the page says so; `check_data` says why
            return Picture(self.name(key), None, size)
        return Picture(self.name(key), to_jpeg(_shrunk(image, cv2.INTER_AREA), QUALITY), image.shape[:2])

    def truth_map(self, key: str) -> np.ndarray:
        """The label map (H, W) of an image that a segmentor is measured by.

        Raises:
            UserError: it cannot be loaded.
        """
        config, info = self._by_key[key]
        results: Any = {**info, "seg_fields": []}
        try:
            for step in self._loading(config):
                results = step(results)
            return np.asarray(results["gt_seg_map"])
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{info.get('seg_map_path')}: ground truth cannot be loaded: {error}") from None

    def _loading(self, config: Mapping[str, Any]) -> list[Any]:
        """The steps of a data set that load its ground truth."""
        if id(config) not in self._steps:
            steps = [step for step in config.get("pipeline") or () if type_name(step).endswith("LoadAnnotations")]
            if not steps:
                raise UserError("test_dataloader: no step of its pipeline loads ground truth: add LoadAnnotations")
            self._steps[id(config)] = [*map(TRANSFORMS.build, steps)]
        return self._steps[id(config)]


def _reader(config: Mapping[str, Any]) -> ImageReader:
    return ImageReader([step for step in config["pipeline"] if not type_name(step).endswith("LoadAnnotations")])


def _shrunk(image: np.ndarray, interpolation: int) -> np.ndarray:
    """The image, made smaller if a side is longer than ``LONG_SIDE``."""
    scale = LONG_SIDE / max(image.shape[:2])
    if scale >= 1:
        return image
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    return cv2.resize(image, size, interpolation=interpolation)


def detections(data: Data, path: Path) -> dict[str, Detection]:
    """Boxes and masks of a file, evaluated; see ``found``.

    Raises:
        UserError: it is not of these data.
    """
    if path.suffix == ".json":
        results = found.read_coco_results(path, data.truth, data.classes)
    else:
        results = found.of_samples(found.read_pickle(path), data.categories, path)
    known = {each["id"] for each in data.truth["images"]}
    for each in results["bbox"]:
        if each["image_id"] not in known:
            raise UserError(f"{path}: image {each['image_id']!r} is not in the ground truth: it is of another data set")
    if "segm" in results and not all("segmentation" in each for each in data.truth["annotations"]):
        del results["segm"]
    return {kind: Detection(data.truth, entries, data.categories, kind) for kind, entries in results.items()}


def segmentation(data: Data, path: Path) -> tuple[Segmentation, dict[str, np.ndarray]]:
    """The label maps of a file, evaluated; and the maps by the paths of their images.

    Raises:
        UserError: it is not of these data.
    """
    if path.suffix == ".json":
        raise UserError(f"{path}: label maps are in a .pkl file, as `test --out FILE.pkl` writes it")
    maps = found.label_maps(found.read_pickle(path), path)
    if unknown := [key for key in maps if key not in data._by_key]:
        raise UserError(
            f"{path}: {unknown[0]} is not in test_dataloader: it is of another data set, or of another folder"
        )
    collector = Collector(data.classes)
    for key in track([*maps], "comparing label maps"):
        try:
            collector.add(key, maps[key], data.truth_map(key))
        except ValueError as error:
            raise UserError(f"{path}: {key}: {error}") from None
    return collector.result(), maps


def errors_of(data: Data, maps: Mapping[str, np.ndarray]) -> Callable[[str], tuple[Picture, bytes | None]]:
    """Gives the picture of an image and the map of its wrong pixels."""

    def give(key: str) -> tuple[Picture, bytes | None]:
        labels, truth = maps[key], data.truth_map(key)
        shown = white(*truth.shape)
        shown[labels != truth] = bgr(VERMILION)
        shown[truth == IGNORED] = (190, 190, 190)
        return data.picture(key), to_png(_shrunk(shown, cv2.INTER_NEAREST))

    return give


def matchable_of(data: Data) -> tuple[matchable.Matchable, str] | None:
    """Which objects of the ground truth an anchor fits at the test scale; of a detector without anchors, which fill a
    cell of its finest level."""
    resize: Mapping[str, Any] = next((step for step in _pipeline(data) if type_name(step).endswith("Resize")), {})
    scale, ratio = resize.get("scale"), bool(resize.get("keep_ratio", False))
    scale = (scale, scale) if isinstance(scale, int) else scale
    kept = {*data.categories}
    sizes = {each["id"]: (each.get("height"), each.get("width")) for each in data.truth["images"]}
    by_size: dict[Any, list[Any]] = {}
    for each in data.truth["annotations"]:
        if each["category_id"] in kept and not each.get("iscrowd") and all(sizes.get(each["image_id"], (0, 0))):
            by_size.setdefault(sizes[each["image_id"]], []).append(each["bbox"])
    if not by_size:
        return None
    levels, least, where = _anchors(data.cfg)
    strides = [stride for level in levels for stride in level.stride] or _strides(data.cfg)
    cell = min(strides, default=CELL)
    every, fits = [], []
    for (height, width), listed in by_size.items():
        down, across = matchable.input_scale(height, width, tuple(scale) if scale else None, ratio)
        boxes = np.array(listed, float)
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1) * [across, down, across, down]
        every.append(corners)
        if levels:
            fits.append(matchable.best_iou(corners, (height * down, width * across), levels) >= least)
        else:
            fits.append((corners[:, 2:] - corners[:, :2]).min(axis=1) >= cell)
    size = f"at the test scale {tuple(scale)}" if scale else "in images of their own size"
    how = (
        f"{size}, an anchor of {where} has an IoU of at least {least:g} with them. In training, the others get at most "
        "the one anchor that is nearest"
        if levels
        else f"{size}, both sides have at least {cell:g} pixels, a cell of the finest level (the model has no anchors)"
    )
    return matchable.tabulate(np.concatenate(every), np.concatenate(fits)), how


def _pipeline(data: Data) -> Sequence[Any]:
    return [step for step in data._configs[0].get("pipeline") or () if isinstance(step, Mapping)]


def _anchors(cfg: Config) -> tuple[list[matchable.Level], float, str]:
    """The anchors of a detector, the IoU from which an object gets one, and the head that has them."""
    for head, assigning in (("rpn_head", "rpn"), ("bbox_head", None)):
        generator = (
            (cfg.model.get(head) or {}).get("anchor_generator") if isinstance(cfg.model.get(head), Mapping) else None
        )
        if not generator:
            continue
        with contextlib.suppress(Exception):  # a generator of another kind
            levels = matchable.levels_of(TASK_UTILS.build(generator))
            train = cfg.model.get("train_cfg") or {}
            assigner = ((train.get(assigning) if assigning else train) or {}).get("assigner") or {}
            return levels, float(assigner.get("pos_iou_thr", 0.5)), f"model.{head}"
    return [], 0.5, ""


def _strides(cfg: Config) -> list[float]:
    """Those that heads name."""
    for _, node in nodes(cfg.model, "model"):
        strides = node.get("strides") if isinstance(node, Mapping) and "num_classes" in node else None
        if isinstance(strides, (list, tuple)) and strides and all(isinstance(each, (int, float)) for each in strides):
            return [float(each) for each in strides]
    return []


def make_page(
    cfg: Config,
    title: str,
    predictions: tuple[str, Path] | None,
    out: Path,
    against: tuple[str, Path] | None = None,
    logs: Sequence[Path] = (),
    score: float | None = None,
    resamples: int = comparing.RESAMPLES,
) -> Path:
    """Analyse predictions, and write the page and its tables.

    Args:
        title: of the page.
        predictions: what they are called, and their file.
        against: those of another run on the same data.
        logs: work dirs of trainings.
        score: the least score of detections in the confusion matrix and on images.

    Returns:
        The page's file.

    Raises:
        UserError: something does not fit, or cannot be read.
        OutputError: the files cannot be written.
    """
    made = Report(Page(printable(title)))
    trainings = [read_training(folder) for folder in logs]
    for run, name in zip(trainings, once([run.name for run in trainings]), strict=True):
        run.name = name
    if predictions is not None:
        report.summary(made, {"Predictions": predictions[0], **({"Against": against[0]} if against else {})})
        data = Data(cfg)
        if data.segments:
            _segmentation(made, data, predictions, against, resamples)
        else:
            _detection(made, data, predictions, against, score, resamples)
    if trainings:
        report.add_trainings(made, trainings)
    return made.write(out)


def _detection(
    made: Report,
    data: Data,
    predictions: tuple[str, Path],
    against: tuple[str, Path] | None,
    score: float | None,
    resamples: int,
) -> None:
    runs = detections(data, predictions[1])
    fits = matchable_of(data)
    for number, run in enumerate(runs.values()):
        report.add_detection(made, run, data, score, None if number else fits)
    if against is None:
        return
    for kind, other in detections(data, against[1]).items():
        if kind in runs:
            result = comparing.bootstrap(
                comparing.ap_of(other), comparing.ap_of(runs[kind]), len(runs[kind].keys), resamples
            )
            what = "AP" if kind == "bbox" else "mask AP"
            report.add_comparison(made, what, (against[0], predictions[0]), data.classes, result, resamples)


def _segmentation(
    made: Report,
    data: Data,
    predictions: tuple[str, Path],
    against: tuple[str, Path] | None,
    resamples: int,
) -> None:
    run, maps = segmentation(data, predictions[1])
    report.add_segmentation(made, run, errors_of(data, maps))
    if against is None:
        return
    other, _ = segmentation(data, against[1])
    if other.keys != run.keys:
        raise UserError(f"{against[1]} is not of the same images as {predictions[1]}, in the same order")
    result = comparing.bootstrap(comparing.iou_of(other), comparing.iou_of(run), len(run.keys), resamples)
    report.add_comparison(made, "IoU", (against[0], predictions[0]), data.classes, result, resamples)
