"""Checks before a run begins. Each error is reported in one line (``UserError``)."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mmengine.registry
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS, MODELS, OPTIMIZERS, TRANSFORMS, Registry
from torch import nn

from mm_vitbackbones import libraries
from mm_vitbackbones.backbones.base import Backbone
from mm_vitbackbones.checkpoints.addresses import resolved
from mm_vitbackbones.checkpoints.downloading import check_scheme
from mm_vitbackbones.checkpoints.loading import arch_name, family_of
from mm_vitbackbones.checkpoints.published import check_is_address, resolve
from mm_vitbackbones.cli.classes import check_num_classes
from mm_vitbackbones.cli.datasets import (
    annotation_file,
    check_annotations,
    check_data_exists,
    check_same_labels,
    classes_of,
    distinct_datasets,
    is_large,
    outer_steps,
)
from mm_vitbackbones.cli.evaluators import check_evaluators, check_results_prefix, needs_annotations
from mm_vitbackbones.cli.stock import warn_of_stock_settings
from mm_vitbackbones.data.masks import check_masks
from mm_vitbackbones.data.values import check_values
from mm_vitbackbones.engine.layer_decay import warn_of_rules
from mm_vitbackbones.errors import CheckpointError, UserError, did_you_mean
from mm_vitbackbones.libraries import look_up
from mm_vitbackbones.nodes import heads, is_pretrained, module_of, nodes, type_name

OURS = "mm_vitbackbones"
"""The scope of this package's registries."""


MMENGINES_CONSTRUCTOR = "DefaultOptimWrapperConstructor"
"""What turns an optimizer's rules into groups of parameters, unless the config says otherwise."""

BACKENDS = {"TensorboardVisBackend": "tensorboard", "WandbVisBackend": "wandb", "MLflowVisBackend": "mlflow"}
"""Packages of log backends; each is an extra of this package, too."""

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
    for library in _libraries_of(cfg.model):
        libraries.load(library)
    named: dict[str, Sequence[str]] = {}
    backbone = check_backbone(cfg.model)
    channels = getattr(backbone, "in_channels", None)
    for where, dataset, seen in distinct_datasets(cfg, splits):
        check_data_exists(dataset, where)
        classes = classes_of(dataset)
        if classes is not None:
            named[where] = classes
            labelled = any(f"{split}_dataloader" in where and needs_annotations(cfg, split) for split in splits)
            if summary := check_annotations(dataset, classes, where, every, seen, labelled):
                print_log(f"{where}: {summary}", logger="current")
            check_num_classes(cfg.model, len(classes), where)
        check_types(dataset, where, cfg.get("default_scope"))
        if has_masks(dataset) and not seen:
            check_masks(dataset, where, every)
        path = annotation_file(dataset)
        if not seen and (path is None or not is_large(path, every)):
            loaders = [name for split in splits if (name := f"{split}_dataloader") in where]
            outer = [step for name in loaders for step in outer_steps(cfg.get(name))]
            check_values(dataset, cfg.model.get("data_preprocessor"), channels, where, every, outer)
    check_same_labels(named)
    check_evaluators(cfg, splits, every)
    if "train" in splits and "val" in splits:
        check_results_prefix(cfg, "val")
    if "train" in splits:
        check_outputs(cfg.model)
        check_hooks(cfg)
        check_optimizer(cfg)
        check_backends(cfg)
        warn_of_stock_settings(cfg, backbone)
        check_pretrained(cfg.model)
        if cfg.get("load_from") is not None:
            check_local_file(cfg.load_from, "load_from")


def _libraries_of(model: Any) -> set[str]:
    """The libraries that types of a model's config name, such as mmdet in ``mmdet.DiceLoss``."""
    return {module_of(node).partition(".")[0] for _, node in nodes(model, "model")} & {*libraries.LIBRARIES}


def check_types(dataset: Mapping[str, Any], where: str, scope: str | None) -> None:
    """Check that a dataset's type and every step of its pipeline are known."""
    for node, registry in [(dataset, DATASETS), *((step, TRANSFORMS) for step in dataset.get("pipeline") or ())]:
        name = node.get("type") if isinstance(node, Mapping) else None
        if isinstance(name, str) and look_up(registry, name) is None:
            raise UserError(f"{where}: {unknown_type(name, registry.name, scope)}")


def has_masks(dataset: Mapping[str, Any]) -> bool:
    """Whether a dataset may be one of semantic segmentation, whose masks are files."""
    kinds = getattr(look_up(DATASETS, dataset.get("type")), "__mro__", ())
    named = (dataset.get("data_prefix") or {}).get("seg_map_path")
    return bool(named) or any(kind.__name__ in ("BaseSegDataset", "BaseCDDataset") for kind in kinds)


def check_outputs(model: Any) -> None:
    """Check that no segmentation head has a softmax over one output. It is 1 everywhere, and its loss 0 for ever."""
    for path, head in heads(model):
        kind = look_up(MODELS, head.get("type"))
        if not any(base.__name__ == "BaseDecodeHead" for base in getattr(kind, "__mro__", ())):
            continue
        losses = head.get("loss_decode", {"type": "CrossEntropyLoss"})
        losses = losses if isinstance(losses, (list, tuple)) else [losses]
        softmax = [type_name(loss) == "CrossEntropyLoss" and not loss.get("use_sigmoid") for loss in losses]
        if (head.get("out_channels") or head["num_classes"]) == 1 and all(softmax):
            raise UserError(
                f"{path} has one output, and the softmax of one output is always 1, so nothing is learnt: set "
                f"{path}.loss_decode.use_sigmoid=True, or num_classes=2, with the background as the first class"
            )


def check_backbone(model: Any) -> Backbone | None:
    """Check that one of our backbones can be built, and that the neck expects its channels.

    Returns:
        The backbone, without memory for its weights; None if it is none of ours.
    """
    config = (model.get("backbone") if isinstance(model, Mapping) else None) or {}
    if (backbone := backbone_of(config, "model.backbone")) is None:
        return None
    neck = model.get("neck")
    expected = neck.get("in_channels") if isinstance(neck, Mapping) else None
    if isinstance(expected, (list, tuple)) and tuple(expected) != backbone.channels:
        raise UserError(
            f"model.neck.in_channels={[*expected]}, but the backbone gives {[*backbone.channels]}; "
            f"set model.neck.in_channels={[*backbone.channels]}"
        )
    return backbone


def backbone_of(config: Mapping[str, Any], where: str) -> Backbone | None:
    """The backbone of a config, without memory for its weights; None if it is none of ours.

    Raises:
        UserError: if it cannot be built.
    """
    backbone_class = look_up(MODELS, config.get("type")) if isinstance(config, Mapping) else None
    if not (isinstance(backbone_class, type) and issubclass(backbone_class, Backbone)):
        return None
    try:
        with torch.device("meta"):  # no memory, no time
            return backbone_class(**{key: value for key, value in config.items() if key != "type"})
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None


def check_hooks(cfg: Config) -> None:
    """Check that no hook is text: what ``--cfg-options`` makes of a dict in a list."""
    for index, hook in enumerate(cfg.get("custom_hooks") or ()):
        if isinstance(hook, str):
            raise UserError(
                f"custom_hooks[{index}] is the text {hook!r} and no dict: --cfg-options takes no dict in a list, so "
                "write it into the config"
            )


def check_optimizer(cfg: Config) -> None:
    """Check that the optimizer is a known one. MMEngine's own error hides the name."""
    name = (cfg.get("optim_wrapper") or {}).get("optimizer", {}).get("type")
    if isinstance(name, str) and look_up(OPTIMIZERS, name) is None:
        raise UserError(f"optim_wrapper: {unknown_type(name, OPTIMIZERS.name, cfg.get('default_scope'))}")


def check_backends(cfg: Config) -> None:
    """Check that the packages of the visualizer's backends are installed."""
    visualizer = cfg.get("visualizer")
    for backend in (visualizer.get("vis_backends") or ()) if isinstance(visualizer, Mapping) else ():
        if (needed := BACKENDS.get(type_name(backend))) and importlib.util.find_spec(needed) is None:
            raise UserError(f"visualizer: {type_name(backend)} needs {needed}: pip install 'mm-vitbackbones[{needed}]'")


def check_pretrained(model: Any) -> None:
    """Check that what ``init_cfg=dict(type='Pretrained', ...)`` names exists: the local file, or the published file of
    a name such as ``imagenet1k``. The loader checks URLs."""
    parts = dict(nodes(model, "model"))
    for path, node in parts.items():
        if is_pretrained(node):
            where = f"{path}.checkpoint"
            checkpoint = published_url(node.get("checkpoint"), parts.get(path.partition(".init_cfg")[0]), where)
            if checkpoint is not None:
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


def check_local_file(name: Any, where: str) -> None:
    """Check that what a config gives as a file is one, or an address that is fetched."""
    try:
        check_is_address(name)
        name = resolved(os.fspath(name))
        if name.lower().startswith(("http://", "https://")):
            check_scheme(name)
    except CheckpointError as error:
        raise UserError(f"{where}: {error}") from None
    if "://" not in name and Path(name).expanduser().is_dir():
        raise UserError(f"{where}: {name} is a folder: give the path of a checkpoint file")
    if "://" not in name and not Path(name).expanduser().is_file():
        siblings = [str(path) for path in Path(name).parent.glob("*") if path.is_file()]
        raise UserError(f"{where}: no file {name}{did_you_mean(name, siblings)}")


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
