"""Checks before a run begins. Each error is reported in one line (``UserError``)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmengine.registry
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS, MODELS, OPTIMIZERS, Registry
from torch import nn

from mm_vitbackbones import libraries
from mm_vitbackbones.backbones.base import Backbone
from mm_vitbackbones.checkpoints.loading import arch_name, family_of
from mm_vitbackbones.checkpoints.published import resolve
from mm_vitbackbones.cli.config import heads
from mm_vitbackbones.data.coco import CocoSummary, check_coco, check_measured, read_coco, some
from mm_vitbackbones.data.coco_masks import load_annotations
from mm_vitbackbones.data.masks import check_masks
from mm_vitbackbones.engine.layer_decay import warn_of_rules
from mm_vitbackbones.errors import CheckpointError, UserError, did_you_mean
from mm_vitbackbones.nodes import is_pretrained, nodes, type_name

OURS = "mm_vitbackbones"
"""The scope of this package's registries."""


LAYOUTS = {
    "coco": "annotations/instances_{train,val}2017.json, train2017/, val2017/, from https://cocodataset.org/#download",
    "ADEChallengeData2016": "images/{training,validation}/ and annotations/{training,validation}/, "
    "from http://sceneparsing.csail.mit.edu (ADEChallengeData2016.zip)",
    "trees": "what `python -m mm_vitbackbones prepare_data trees` puts there: run it first",
    "mini": "what `python -m mm_vitbackbones prepare_data mini` puts there: run it first",
}
"""What a known data root holds, by the root's name, as the end of "expected there: ..."."""


PROCESSING = ("pipeline", "lazy_init", "serialize_data", "max_refetch")
"""Arguments of a dataset that say how its images are read, not which ones."""

MASKS = "(how masks are loaded)"
"""The one part of a pipeline that counts."""

LEAVING_OUT = ("filter_cfg", "test_mode", MASKS)
"""What says which images of a dataset are left out, or which of their objects."""


LARGE = 64 * 2**20
"""Annotation files of this many bytes or more are not read twice: COCO's takes tens of seconds, and is not empty."""


MMENGINES_CONSTRUCTOR = "DefaultOptimWrapperConstructor"
"""What turns an optimizer's rules into groups of parameters, unless the config says otherwise."""

SKIP = "--skip-checks begins without these checks"
"""The end of each message of a check, where a run can begin without."""


def check_or_skip(cfg: Config, splits: Sequence[str], every: bool = False, skip: bool = False) -> None:
    """``check`` before a run, whose errors name the way past them; with ``skip`` no check, and the log says so.

    Raises:
        UserError: as ``check``.
    """
    libraries.use(libraries.scope_of(cfg))
    if skip:
        print_log("--skip-checks: neither the config nor its data are checked", logger="current", level=logging.WARNING)
        return
    try:
        check(cfg, splits, every)
    except UserError as error:
        raise UserError(f"{error} ({SKIP})") from None


def check(cfg: Config, splits: Sequence[str], every: bool = False) -> None:
    """Check a config against this machine: libraries, data of these splits (train, val, test), model.

    A sample of a data set's images and masks is checked, or all of them with ``every``. A data set that several splits
    share is checked once.

    Raises:
        UserError: for the first error that is found.
    """
    libraries.use(libraries.scope_of(cfg))
    named: dict[str, Sequence[str]] = {}
    for where, dataset, seen in distinct_datasets(cfg, splits):
        check_data_exists(dataset, where)
        classes = classes_of(dataset)
        if classes is not None:
            named[where] = classes
            labelled = any(f"{split}_dataloader" in where and needs_annotations(cfg, split) for split in splits)
            if summary := check_annotations(dataset, classes, where, every, seen, labelled):
                print_log(f"{where}: {summary}", logger="current")
            check_num_classes(cfg.model, len(classes), where)
        if "train" in splits and (dataset.get("data_prefix") or {}).get("seg_map_path") and not seen:
            check_masks(dataset, where, every)
    check_same_labels(named)
    check_evaluators(cfg, splits, every)
    if "train" in splits and "val" in splits:
        check_results_prefix(cfg, "val")
    check_backbone(cfg.model)
    if "train" in splits:
        check_optimizer(cfg)
        check_pretrained(cfg.model)
        if isinstance(cfg.get("load_from"), str):
            check_local_file(cfg.load_from, "load_from")


def distinct_datasets(cfg: Config, splits: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    """The datasets of these splits, each once: the dataloaders that have it (``val_dataloader and test_dataloader``),
    the dataset, and whether an earlier one has the same files and leaves out other images.

    How images are transformed does not count, except for whether masks are loaded.
    """
    found: list[tuple[list[str], dict[str, Any], Mapping[str, Any]]] = []
    for split in splits:
        where = f"{split}_dataloader"
        for dataset in datasets_of(cfg.get(where)):
            kept = {key: value for key, value in dataset.items() if key not in PROCESSING}
            kept[MASKS] = load_annotations(dataset.get("pipeline"))
            loaders = next((loaders for loaders, known, _ in found if known == kept), None)
            if loaders is None:
                found.append(([where], kept, dataset))
            elif where not in loaders:
                loaders.append(where)
    seen: list[dict[str, Any]] = []
    for loaders, kept, dataset in found:
        files = {key: value for key, value in kept.items() if key not in LEAVING_OUT}
        *first, last = loaders
        yield f"{', '.join(first)} and {last}" if first else last, dataset, files in seen
        seen.append(files)


def datasets_of(loader: Any) -> Iterator[Mapping[str, Any]]:
    """The innermost dataset configs of a dataloader config, out of wrappers such as RepeatDataset."""
    pending = [loader.get("dataset")] if isinstance(loader, Mapping) else []
    while pending:
        dataset = pending.pop(0)
        if not isinstance(dataset, Mapping):
            continue
        inner = [dataset[key] for key in ("dataset", "datasets") if key in dataset]
        if inner:
            pending += [each for item in inner for each in (item if isinstance(item, (list, tuple)) else [item])]
        else:
            yield dataset


def check_data_exists(dataset: Mapping[str, Any], where: str) -> None:
    """Check that the annotation file and the folders of images are on this disk, where the config says."""
    for path, is_folder in paths_of(dataset):
        if path.is_dir() if is_folder else path.is_file():
            continue
        root = Path(dataset.get("data_root") or path.parent)
        layout = LAYOUTS.get(root.name)
        expected = f"; expected in {root}: {layout}" if layout else "; put it there, or set data_root in the config"
        relative = "" if path.is_absolute() else f" (looked from {Path.cwd()})"
        raise UserError(f"{where}: no {'folder' if is_folder else 'file'} {path}{relative}{expected}")


def paths_of(dataset: Mapping[str, Any]) -> Iterator[tuple[Path, bool]]:
    """The local paths that a dataset reads, as MMEngine joins them, and whether each is a folder."""
    if (dataset.get("backend_args") or {}).get("backend", "local") != "local":
        return
    root = dataset.get("data_root") or ""
    named = [
        (dataset.get("ann_file"), False),
        *((value, True) for value in (dataset.get("data_prefix") or {}).values()),
    ]
    for name, is_folder in named:
        if isinstance(name, str) and (name or (is_folder and root)) and "://" not in f"{root}{name}":
            yield Path(root, name), is_folder


def annotation_file(dataset: Mapping[str, Any]) -> Path | None:
    """The COCO-format file of a dataset, if it has one on this disk."""
    files = [path for path, is_folder in paths_of(dataset) if not is_folder and path.suffix == ".json"]
    return files[0] if files else None


def classes_of(dataset: Mapping[str, Any]) -> Sequence[str] | None:
    """The class names by the rule of MMEngine's datasets: the config's, else those of the dataset's class."""
    classes = (dataset.get("metainfo") or {}).get("classes")
    if classes is None:
        dataset_class = look_up(DATASETS, dataset.get("type"))
        classes = getattr(dataset_class, "METAINFO", {}).get("classes")
    elif isinstance(classes, str) and not Path(classes).is_file():
        raise UserError(f"metainfo: classes={classes!r} is a string; write a tuple of names: classes=({classes!r},)")
    elif isinstance(classes, str):
        classes = Path(classes).read_text(encoding="utf-8").splitlines()
    elif not isinstance(classes, (list, tuple)):
        raise UserError(f"metainfo: classes={classes!r} is no tuple of names")
    return classes


def check_annotations(
    dataset: Mapping[str, Any],
    classes: Sequence[str],
    where: str,
    every: bool = False,
    seen: bool = False,
    labelled: bool = True,
) -> CocoSummary | None:
    """Check that a COCO-format file holds what the config says, as mmdet will read it. A large file is checked with
    ``every`` only. Images that have been ``seen`` are not checked again. Without ``labelled`` there may be no
    annotations."""
    path = annotation_file(dataset)
    if path is None or not is_read_as_coco(dataset) or (path.stat().st_size >= LARGE and not every):
        return None
    if "img" not in (dataset.get("data_prefix") or {}):
        raise UserError(f"{where}: the dataset needs data_prefix=dict(img=...), the folder of its images")
    return check_coco(dataset, path, classes, where, every, seen, labelled)


def is_read_as_coco(dataset: Mapping[str, Any]) -> bool:
    """Whether a dataset is mmdet's CocoDataset, or derived from it without another way to read its file."""
    dataset_class, coco = (look_up(DATASETS, name) for name in (dataset.get("type"), "mmdet.CocoDataset"))
    if not (isinstance(dataset_class, type) and isinstance(coco, type)):
        return True  # a wrong type is reported when it is built
    readers = ("load_data_list", "parse_data_info", "COCOAPI")
    return issubclass(dataset_class, coco) and all(
        getattr(dataset_class, name) is getattr(coco, name) for name in readers
    )


def needs_annotations(cfg: Config, split: str) -> bool:
    """Whether a split is trained on, or something is measured by its annotations."""
    return split == "train" or any(
        not evaluator.get("format_only") and not type_name(evaluator).startswith("Dump")
        for evaluator in evaluators_of(cfg, split)
    )


def check_same_labels(classes: Mapping[str, Sequence[str]]) -> None:
    """Check that no class has one label in one data set, and another in the next."""
    (first, known), *others = [*classes.items()] or [("", ())]
    for where, names in others:
        moved = [name for name in names if name in known and [*names].index(name) != [*known].index(name)]
        if moved:
            label, other = [*names].index(moved[0]), [*known].index(moved[0])
            raise UserError(
                f"the class {moved[0]!r} has label {label} in {where}, and {other} in {first}: set "
                "the same metainfo=dict(classes=(...)) for both, in the same order"
            )
        if [*names] != [*known]:
            print_log(
                f"the classes of {where} are {some(names)}, and those of {first} {some(known)}: a label stands for the "
                "names at its place in both",
                logger="current",
                level=logging.WARNING,
            )


def check_num_classes(model: Any, count: int, where: str) -> None:
    """Check that every head predicts as many classes as the dataset has."""
    for path, head in heads(model):
        if head["num_classes"] != count:
            raise UserError(
                f"{path}.num_classes={head['num_classes']}, but the data set of {where} has {count} classes; "
                f"set {path}.num_classes={count}, or metainfo=dict(classes=(...)) of the dataset"
            )


def evaluators_of(cfg: Config, split: str) -> list[Mapping[str, Any]]:
    """The configs of the evaluators of a split."""
    evaluators = cfg.get(f"{split}_evaluator") or []
    listed = evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]
    if len(listed) == 1 and isinstance(listed[0], Mapping) and isinstance(listed[0].get("metrics"), (list, tuple)):
        listed = listed[0]["metrics"]  # of an evaluator that is written out
    return [evaluator for evaluator in listed if isinstance(evaluator, Mapping)]


def type_name(config: Mapping[str, Any]) -> str:
    """The name of a config's type, which may be a class, without its scope."""
    kind = config.get("type")
    return (kind if isinstance(kind, str) else getattr(kind, "__name__", "")).rpartition(".")[2]


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
    if classes is None or evaluator.get("format_only") or (path.stat().st_size >= LARGE and not every):
        return
    metrics = evaluator.get("metric", "bbox")
    metrics = [metrics] if isinstance(metrics, str) else metrics
    images = check_measured(path, classes, metrics, where, bool(evaluator.get("sort_categories")))
    for dataset in datasets:
        file = annotation_file(dataset)
        if file is None or file.resolve() == path.resolve() or not is_read_as_coco(dataset):
            continue
        if file.stat().st_size < LARGE or every:
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


def check_backbone(model: Any) -> None:
    """Check that one of our backbones can be built, and that the neck expects its channels."""
    config = (model.get("backbone") if isinstance(model, Mapping) else None) or {}
    if (backbone := backbone_of(config, "model.backbone")) is None:
        return
    neck = model.get("neck")
    expected = neck.get("in_channels") if isinstance(neck, Mapping) else None
    if isinstance(expected, (list, tuple)) and tuple(expected) != backbone.channels:
        raise UserError(
            f"model.neck.in_channels={[*expected]}, but the backbone gives {[*backbone.channels]}; "
            f"set model.neck.in_channels={[*backbone.channels]}"
        )


def backbone_of(config: Mapping[str, Any], where: str) -> Backbone | None:
    """The backbone of a config, without memory for its weights; None if it is none of ours.

    Raises:
        UserError: if it cannot be built.
    """
    backbone_class = look_up(MODELS, config.get("type"))
    if not (isinstance(backbone_class, type) and issubclass(backbone_class, Backbone)):
        return None
    try:
        with torch.device("meta"):  # no memory, no time
            return backbone_class(**{key: value for key, value in config.items() if key != "type"})
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None


def check_optimizer(cfg: Config) -> None:
    """Check that the optimizer is a known one. MMEngine's own error hides the name."""
    name = (cfg.get("optim_wrapper") or {}).get("optimizer", {}).get("type")
    if isinstance(name, str) and look_up(OPTIMIZERS, name) is None:
        raise UserError(f"optim_wrapper: {unknown_type(name, OPTIMIZERS.name, cfg.get('default_scope'))}")


def check_pretrained(model: Any) -> None:
    """Check that what ``init_cfg=dict(type='Pretrained', ...)`` names exists: the local file, or the published file of
    a name such as ``imagenet1k``. The loader checks URLs."""
    parts = dict(nodes(model, "model"))
    for path, node in parts.items():
        if is_pretrained(node):
            where = f"{path}.checkpoint"
            checkpoint = published_url(node.get("checkpoint"), parts.get(path.partition(".init_cfg")[0]), where)
            if isinstance(checkpoint, str):
                check_local_file(checkpoint, where)


def published_url(checkpoint: Any, owner: Any, where: str) -> Any:
    """A checkpoint as the config of a network of ours (``owner``) has it, with the URL for a name; others unchanged."""
    network = look_up(MODELS, owner.get("type")) if isinstance(owner, Mapping) else None
    family = family_of(network) if isinstance(network, type) else None
    if not family:
        return checkpoint
    backbone = backbone_of(owner, where.partition(".init_cfg")[0])
    try:
        return resolve(checkpoint, family.name, backbone and arch_name(backbone))
    except CheckpointError as error:
        raise UserError(f"{where}: {error}") from None


def check_local_file(name: str, where: str) -> None:
    if "://" not in name and not Path(name).expanduser().is_file():
        siblings = [str(path) for path in Path(name).parent.glob("*") if path.is_file()]
        raise UserError(f"{where}: no file {name}{did_you_mean(name, siblings)}")


def look_up(registry: Registry, name: Any) -> Any:
    """The class of a type name in the default scope; a class is returned as it is, an unknown name gives None."""
    if not isinstance(name, str):
        return name
    with registry.switch_scope_and_registry(None) as scoped:
        return scoped.get(name)


def unknown_type(name: str, kind: str, scope: str | None) -> str:
    """The message about a type that no registry of a kind (model, hook, ...) has, with the nearest ones."""
    known = []
    for root in vars(mmengine.registry).values():
        if isinstance(root, Registry) and root.name == kind:
            known += root.module_dict
            for child in {scope, OURS} & root.children.keys():
                prefix = f"{OURS}." if child == OURS else ""
                known += [f"{prefix}{each}" for each in root.children[child].module_dict]
    return f"type={name!r} is not a known {kind}{did_you_mean(name.removeprefix(f'{scope}.'), known)}"


def check_rules(cfg: Config, model: nn.Module) -> None:
    """Log what has no effect in the optimizer's rules, if MMEngine's own constructor takes them. The one of this
    package does so itself, and what another one takes is not known."""
    wrapper = cfg.get("optim_wrapper") or {}
    if type_name(wrapper.get("constructor") or MMENGINES_CONSTRUCTOR) == MMENGINES_CONSTRUCTOR:
        warn_of_rules(wrapper.get("paramwise_cfg"), model)
