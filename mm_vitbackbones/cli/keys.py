"""Keys of a config that nothing reads: misspelt ones. MMEngine ignores most of them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    HOOKS,
    LOG_PROCESSORS,
    LOOPS,
    METRICS,
    MODELS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    TASK_UTILS,
    TRANSFORMS,
    VISBACKENDS,
    VISUALIZERS,
    DefaultScope,
    Registry,
)
from torch.utils.data import DataLoader

from mm_vitbackbones import libraries
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.nodes import nodes

SPLITS = ("train", "val", "test")

READ = {
    # By MMEngine's Runner.
    "model",
    "work_dir",
    *(f"{split}_{part}" for split in SPLITS for part in ("dataloader", "cfg")),
    "val_evaluator",
    "test_evaluator",
    "auto_scale_lr",
    "optim_wrapper",
    "param_scheduler",
    "default_hooks",
    "custom_hooks",
    "data_preprocessor",
    "load_from",
    "resume",
    "launcher",
    "env_cfg",
    "log_processor",
    "log_level",
    "visualizer",
    "default_scope",
    "randomness",
    "experiment_name",
    "model_wrapper_cfg",
    "sync_bn",
    "find_unused_parameters",
    "activation_checkpointing",
    "efficient_conv_bn_eval",
    "compile",
    "custom_imports",
    "env_variables",
    # By MMEngine's other runner, and by the tools of the libraries and of this package.
    "runner_type",
    "strategy",
    "tta_model",
    "tta_pipeline",
}
"""Names at the top of a config that something reads."""

VARIABLES = {
    *(f"{split}_{part}" for split in SPLITS for part in ("pipeline", "dataset", "transforms")),
    "num_classes",
    "crop_size",
    "data_root",
    "metainfo",
    "norm_cfg",
    "optimizer",
    "vis_backends",
}
"""Usual names of variables: parts of a config file that other parts of it use."""

LOOP = ("by_epoch", "max_epochs", "max_iters", "val_begin", "val_interval", "dynamic_intervals")
DATALOADER = {
    *inspect.signature(DataLoader.__init__).parameters,
    "num_batch_per_epoch",
}
MULTIPLIERS = ("lr_mult", "decay_mult")

UNTYPED: dict[str, Iterable[str]] = {
    "train_cfg": LOOP,
    **{f"{split}_dataloader": DATALOADER for split in SPLITS},
    "auto_scale_lr": ("enable", "base_batch_size"),
    "randomness": ("seed", "deterministic", "diff_rank_seed"),
    "env_cfg": ("cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit"),
    "env_cfg.mp_cfg": ("mp_start_method", "opencv_num_threads"),
    "optim_wrapper": ("optimizer", "paramwise_cfg", "constructor", "clip_grad", "accumulative_counts"),
    "optim_wrapper.clip_grad": ("type", "max_norm", "max_value", "clip_value", "norm_type", "error_if_nonfinite"),
    "optim_wrapper.paramwise_cfg": (
        "custom_keys",
        "bias_lr_mult",
        "bias_decay_mult",
        "norm_decay_mult",
        "flat_decay_mult",
        "dwconv_decay_mult",
        "dcn_offset_lr_mult",
        "bypass_duplicate",
        "layer_decay_rate",
        "num_layers",
        "decay_rate",
        "decay_type",
    ),
    "default_hooks": (
        "runtime_info",
        "timer",
        "sampler_seed",
        "logger",
        "param_scheduler",
        "checkpoint",
        "visualization",
        "epoch_seed",
        "curves",
        "plain_checkpoint",
        "same_classes",
    ),
}
"""What is read of a part that names no type, by its path. Other names are errors where one of these is near."""

FILTERS = ("filter_empty_gt", "min_size", "bbox_min_size")
SEGMENTOR_TEST = ("mode", "crop_size", "stride", "logits")
DETECTOR_TEST = (
    "score_thr",
    "max_per_img",
    "max_per_image",
    "nms_pre",
    "min_bbox_size",
    "mask_thr_binary",
    "nms",
    "rpn",
    "rcnn",
)

SECTIONS: dict[str, tuple[Registry, ...]] = {
    "model": (MODELS, TASK_UTILS),
    **{f"{split}_dataloader": (DATASETS, TRANSFORMS, DATA_SAMPLERS) for split in SPLITS},
    **{f"{split}_cfg": (LOOPS,) for split in SPLITS},
    "val_evaluator": (METRICS,),
    "test_evaluator": (METRICS,),
    "optim_wrapper": (OPTIM_WRAPPERS, OPTIMIZERS),
    "param_scheduler": (PARAM_SCHEDULERS,),
    "default_hooks": (HOOKS,),
    "custom_hooks": (HOOKS,),
    "visualizer": (VISUALIZERS, VISBACKENDS),
    "log_processor": (LOG_PROCESSORS,),
    "tta_pipeline": (TRANSFORMS,),
}
"""Where the types of a part are registered."""

BUILDERS = {
    "type",
    "_scope_",
    "_delete_",
    "constructor",
    "convert_to_iter_based",
    "init_cfg",
    "optimizer",
    "paramwise_cfg",
    "priority",
    "requires_grad",
}
"""What the functions that build a part take out of it."""


def check_keys(cfg: Config, path: Path) -> None:
    """Check that something reads the keys of a config, as far as a near name says that one is misspelt.

    A name at the top of the config is a variable if it is near no known one, or if another part has its value.

    Raises:
        UserError: for the first key that nothing reads, with the nearest name.
    """
    scope = libraries.scope_of(cfg)
    libraries.load(scope)
    whole = {key: cfg.get(key) for key in cfg}
    for name in whole:
        if near := _near_at_the_top(name, whole):
            raise UserError(f"{path}: nothing reads {name!r}; did you mean {near!r}?")
    with DefaultScope.overwrite_default_scope(scope):
        for section, registries in SECTIONS.items():
            for where, key, near in _unread(section, whole.get(section), registries):
                raise UserError(f"{path}: nothing reads {where}.{key}; did you mean {where}.{near}?")
    for section in UNTYPED:
        if section not in SECTIONS:
            for where, key, near in _unread(section, _part(whole, section), ()):
                raise UserError(f"{path}: nothing reads {where}.{key}; did you mean {where}.{near}?")


def _near_at_the_top(name: str, whole: Mapping[str, Any]) -> str:
    """The known name that a misspelt one at the top of a config means; empty for a known name and for a variable."""
    if name in READ | VARIABLES or name.startswith("_"):
        return ""
    near = difflib.get_close_matches(name.lower(), READ - {"model", "compile", "resume"}, n=1, cutoff=0.8)
    if not near or is_used(whole[name], whole, name):
        return ""
    return near[0]


def is_used(value: Any, whole: Mapping[str, Any], name: str) -> bool:
    """Whether another part of a config has this value, or a text that holds it."""
    if value is None or isinstance(value, (bool, int, float)):
        return any(where.rpartition(".")[2] == name and node == value for where, node in _others(whole, name))
    return any(
        same(node, value) or (isinstance(value, str) and isinstance(node, str) and value in node)
        for _, node in _others(whole, name)
    )


def _others(whole: Mapping[str, Any], name: str) -> Iterator[tuple[str, Any]]:
    return (found for key, value in whole.items() if key != name for found in nodes(value, key))


def same(first: Any, second: Any) -> bool:
    """Whether two values of a config are equal and of one type."""
    return type(first) is type(second) and bool(first == second)


def _part(whole: Mapping[str, Any], path: str) -> Any:
    node: Any = whole
    for key in path.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _unread(section: str, part: Any, registries: tuple[Registry, ...]) -> Iterator[tuple[str, str, str]]:
    """The misspelt keys of a part: path, key and the nearest name that is read."""
    for where, node in nodes(part, section):
        if not isinstance(node, Mapping) or ".init_cfg" in where:
            continue
        kind = _kind(node.get("type"), where, registries)
        names, closed = accepted(kind) if kind else (frozenset(), False)
        known = {*names, *UNTYPED.get(where, ())}
        known |= {*_read_by_get(where, section)}
        if where.startswith("optim_wrapper.paramwise_cfg.custom_keys."):
            known |= {*MULTIPLIERS}
        if not known:
            continue
        cutoff = 0.6 if where != "default_hooks" and (where in UNTYPED or (closed and section != "model")) else 0.75
        if section == "model" and "type" in node:  # a head may take arguments out of its parts before it builds them
            cutoff = 0.9
        for key in node.keys() - known - BUILDERS:
            typed = where == "default_hooks" and isinstance(node[key], Mapping) and "type" in node[key]
            if not typed and (near := difflib.get_close_matches(str(key), known, n=1, cutoff=cutoff)):
                yield where, str(key), near[0]


def _kind(name: Any, where: str, registries: tuple[Registry, ...]) -> Any:
    """The class or function of a type name; None without one. A pipeline has steps, and nothing else."""
    if name is None:
        return None
    if ".pipeline[" in where and TRANSFORMS in registries:
        registries = (TRANSFORMS, *(each for each in registries if each is not TRANSFORMS))
    found = (libraries.look_up(each, name) for each in registries)
    return next((kind for kind in found if kind is not None), None)


def _read_by_get(where: str, section: str) -> Iterable[str]:
    """What is read of a dict that names no type and whose other names are ignored."""
    last = where.rpartition(".")[2]
    if section.endswith("_dataloader") and last == "filter_cfg":
        return FILTERS
    if section == "model" and where.startswith("model.test_cfg"):
        return (*SEGMENTOR_TEST, *DETECTOR_TEST)
    return ()


@cache
def accepted(kind: Any) -> tuple[frozenset[str], bool]:
    """The names of the arguments of a class or a function, and whether these are all that it takes."""
    functions = (
        [vars(base)["__init__"] for base in kind.__mro__ if "__init__" in vars(base)]
        if inspect.isclass(kind)
        else [kind]
    )
    names: set[str] = set()
    for function in functions:
        if function is object.__init__:
            break
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            break
        names |= {each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
        if all(each.kind is not each.VAR_KEYWORD for each in parameters):
            return frozenset(names - {"self"}), True
    return frozenset(names - {"self"}), False
