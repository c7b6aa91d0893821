"""The evaluators of a config: what they measure, and checks of the files that they measure by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mm_vitbackbones.cli.datasets import annotation_file, classes_of, datasets_of, is_large, is_read_as_coco
from mm_vitbackbones.data.coco import check_measured, read_coco
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.nodes import type_name


def evaluators_of(cfg: Config, split: str) -> list[Mapping[str, Any]]:
    """The configs of the evaluators of a split."""
    evaluators = cfg.get(f"{split}_evaluator") or []
    listed = evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]
    if len(listed) == 1 and isinstance(listed[0], Mapping) and isinstance(listed[0].get("metrics"), (list, tuple)):
        listed = listed[0]["metrics"]  # of an evaluator that is written out
    return [evaluator for evaluator in listed if isinstance(evaluator, Mapping)]


def needs_annotations(cfg: Config, split: str) -> bool:
    """Whether a split is trained on, or something is measured by its annotations."""
    return split == "train" or any(
        not evaluator.get("format_only") and not type_name(evaluator).startswith("Dump")
        for evaluator in evaluators_of(cfg, split)
    )


def check_evaluators(cfg: Config, splits: Sequence[str], every: bool = False) -> None:
    """Check that the annotation files that evaluators read exist, and that CocoMetrics can measure by them."""
    done: list[tuple[Any, ...]] = []
    for split in splits:
        for evaluator in evaluators_of(cfg, split):
            path = evaluator.get("ann_file")
            if isinstance(path, str) and "://" not in path and not Path(path).is_file():
                raise UserError(f"{split}_evaluator: no file {path}; set its ann_file to the dataset's annotation file")
            if type_name(evaluator) != "CocoMetric":
                continue
            datasets = [*datasets_of(cfg.get(f"{split}_dataloader"))]
            if path is None:
                check_carries_instances(datasets, f"{split}_evaluator")
            what = (path, evaluator.get("metric"), evaluator.get("format_only"), [annotation_file(d) for d in datasets])
            if isinstance(path, str) and "://" not in path and what not in done:
                done.append(what)
                check_coco_metric(evaluator, Path(path), datasets, f"{split}_evaluator", every)


def check_coco_metric(
    evaluator: Mapping[str, Any], path: Path, datasets: Sequence[Mapping[str, Any]], where: str, every: bool
) -> None:
    """Check the file of a CocoMetric, and that it lists the images of the datasets. A large file is checked with
    ``every`` only."""
    classes = next((classes for dataset in datasets if (classes := classes_of(dataset)) is not None), None)
    if classes is None or is_large(path, every):
        return
    metrics = [] if evaluator.get("format_only") else evaluator.get("metric", "bbox")
    metrics = [metrics] if isinstance(metrics, str) else metrics
    images = check_measured(path, classes, metrics, where, bool(evaluator.get("sort_categories")))
    for dataset in datasets:
        file = annotation_file(dataset)
        if file is None or file.resolve() == path.resolve() or not is_read_as_coco(dataset):
            continue
        if not is_large(file, every):
            listed = [image["id"] for image in read_coco(file, where, labelled=False)["images"]]
            if lacking := [key for key in listed if key not in images]:
                raise UserError(
                    f"{where}: {path} does not list {len(lacking)} images of {file}, such as id {lacking[0]!r}: set "
                    "its ann_file to the dataset's annotation file"
                )


def check_carries_instances(datasets: Sequence[Mapping[str, Any]], where: str) -> None:
    """Check that a CocoMetric without a file gets the annotations with the images."""
    steps = [step for dataset in datasets for step in dataset.get("pipeline") or () if isinstance(step, Mapping)]
    packing = [step for step in steps if type_name(step) == "PackDetInputs"]
    if any("instances" not in (step.get("meta_keys") or ()) for step in packing):
        raise UserError(f"{where}: CocoMetric has no ann_file; set it to the dataset's annotation file")


def check_results_prefix(cfg: Config, split: str) -> None:
    """Check that a CocoMetric that only writes results knows where."""
    for evaluator in evaluators_of(cfg, split):
        if evaluator.get("format_only") and not evaluator.get("outfile_prefix"):
            hint = ", or give --out FILE.json" if split == "test" else ""
            raise UserError(
                f"{split}_evaluator: format_only=True writes a results file and measures nothing; say where by its "
                f"outfile_prefix{hint}"
            )
