"""The evaluators of a config: what they measure, and checks of the files that they measure by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mm_vitbackbones.cli.datasets import annotation_file, classes_of, datasets_of, is_large, is_read_as_coco
from mm_vitbackbones.data.coco import check_is_json, check_measured, read_coco
from mm_vitbackbones.errors import UserError, counted
from mm_vitbackbones.nodes import type_name


def evaluators_of(cfg: Config, split: str) -> list[Mapping[str, Any]]:
    """The configs of the evaluators of a split."""
    evaluators = cfg.get(f"{split}_evaluator") or []
    listed = evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]
    if len(listed) == 1 and isinstance(listed[0], Mapping) and "metrics" in listed[0]:  # an Evaluator, written out
        metrics = listed[0]["metrics"]
        listed = metrics if isinstance(metrics, (list, tuple)) else [metrics]
    return [evaluator for evaluator in listed if isinstance(evaluator, Mapping)]


def measured_by(cfg: Config, split: str) -> Iterator[tuple[Mapping[str, Any], list[Mapping[str, Any]]]]:
    """The configs of the evaluators of a split, each with those of the data sets that it measures: all, but one each
    with mmdet's MultiDatasetsEvaluator."""
    datasets, evaluators = [*datasets_of(cfg.get(f"{split}_dataloader"))], evaluators_of(cfg, split)
    if type_name(cfg.get(f"{split}_evaluator")) == "MultiDatasetsEvaluator":
        yield from ((evaluator, [dataset]) for evaluator, dataset in zip(evaluators, datasets, strict=False))
    else:
        yield from ((evaluator, datasets) for evaluator in evaluators)


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
        for evaluator, datasets in measured_by(cfg, split):
            path = evaluator.get("ann_file")
            if isinstance(path, str) and "://" not in path and type_name(evaluator) == "CocoMetric":
                check_is_json(Path(path), f"{split}_evaluator")
            if isinstance(path, str) and "://" not in path and not Path(path).is_file():
                raise UserError(f"{split}_evaluator: no file {path}; set its ann_file to the dataset's annotation file")
            if type_name(evaluator) != "CocoMetric":
                continue
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
    files = {file for dataset in datasets if is_read_as_coco(dataset) and (file := annotation_file(dataset))}
    if {file.resolve() for file in files} == {path.resolve()}:
        return
    found: dict[Any, Path] = {}
    for file in sorted(file for file in files if not is_large(file, every)):
        listed = [image["id"] for image in read_coco(file, where, labelled=False)["images"]]
        if lacking := [key for key in listed if key not in images]:
            raise UserError(
                f"{where}: {path} does not list {counted(len(lacking), 'image')} of {file}, such as id {lacking[0]!r}: "
                "set its ann_file to the dataset's annotation file"
            )
        if shared := [key for key in listed if key in found]:
            raise UserError(
                f"{where}: one CocoMetric measures {found[shared[0]]} and {file}, and both have an image of id "
                f"{shared[0]!r}: give images ids of their own, or use MultiDatasetsEvaluator with a metric for each"
            )
        found.update(dict.fromkeys(listed, file))


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
