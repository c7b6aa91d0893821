"""The data sets of a config: which there are, where their files lie, and checks of these before a run begins."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from mm_vitbackbones.data.coco import check_coco, check_is_json, some
from mm_vitbackbones.data.coco_masks import load_annotations
from mm_vitbackbones.data.coco_summary import CocoSummary
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.libraries import look_up
from mm_vitbackbones.nodes import nodes

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


def outer_steps(loader: Any) -> list[Any]:
    """The steps of the data sets of a dataloader that hold others, such as MultiImageMixDataset."""
    return [
        step
        for _, node in nodes(loader.get("dataset") if isinstance(loader, Mapping) else None, "")
        if isinstance(node, Mapping) and ("dataset" in node or "datasets" in node)
        for step in node.get("pipeline") or ()
    ]


def check_data_exists(dataset: Mapping[str, Any], where: str) -> None:
    """Check that the annotation file and the folders of images are on this disk, where the config says."""
    for path, is_folder in paths_of(dataset):
        if not is_folder and is_known_coco(dataset):
            check_is_json(path, where)
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
    elif not isinstance(classes, (list, tuple)) or not all(isinstance(name, str) for name in classes):
        raise UserError(f"metainfo: classes={classes!r} is no tuple of names")
    return classes


def is_large(path: Path, every: bool) -> bool:
    """Whether an annotation file is left to the libraries; with ``every`` none is."""
    return not every and path.stat().st_size >= LARGE


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
    if path is None or not is_read_as_coco(dataset) or is_large(path, every):
        return None
    return check_coco(dataset, path, classes, where, every, seen, labelled)


def is_known_coco(dataset: Mapping[str, Any]) -> bool:
    """Whether a dataset's class is known, and reads COCO JSON."""
    return isinstance(look_up(DATASETS, dataset.get("type")), type) and is_read_as_coco(dataset)


def is_read_as_coco(dataset: Mapping[str, Any]) -> bool:
    """Whether a dataset is mmdet's CocoDataset, or derived from it without another way to read its file."""
    dataset_class, coco = (look_up(DATASETS, name) for name in (dataset.get("type"), "mmdet.CocoDataset"))
    if not (isinstance(dataset_class, type) and isinstance(coco, type)):
        return True  # a wrong type is reported when it is built
    readers = ("load_data_list", "parse_data_info", "COCOAPI")
    return issubclass(dataset_class, coco) and all(
        getattr(dataset_class, name) is getattr(coco, name) for name in readers
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
