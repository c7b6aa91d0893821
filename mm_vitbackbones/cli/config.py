"""Config files: reading them, and what a run changes in them."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log

from mm_vitbackbones import libraries, recipes
from mm_vitbackbones.cli import variables
from mm_vitbackbones.cli.keys import check_keys
from mm_vitbackbones.errors import UserError, did_you_mean
from mm_vitbackbones.nodes import nodes, type_name
from mm_vitbackbones.search_path import left_out

SYNCHRONISED = ("SyncBN", "SyncBatchNorm")
"""The registered name and the class of the batch norm that needs several processes."""

SIZES = {"scale", "scales", "crop_size", "size"}
"""Arguments that are a width and a height, or a list of these."""

PARTS = (
    "model",
    *(f"{split}_{part}" for split in ("train", "val", "test") for part in ("dataloader", "cfg")),
    "optim_wrapper",
    "optim_wrapper.optimizer",
    "optim_wrapper.paramwise_cfg",
    "optim_wrapper.paramwise_cfg.custom_keys",
    "default_hooks",
)
"""The parts of a config that are dicts, or None. An earlier one holds a later one."""

NO_DATASET = (type(None), str, list, tuple)
"""What the data set of a dataloader is not. MMEngine takes a dict, or a data set itself."""

RECIPE = '_base_ = __import__("mm_vitbackbones").recipe("NAME")'
"""How a config inherits from a recipe."""


def load_config(path: Path, options: dict[str, Any]) -> Config:
    """A config file with ``--cfg-options`` merged into it.

    Raises:
        UserError: there is no such file, or it (or one of its bases) cannot be read, or an option does not fit.
    """
    cfg = read_config(path)
    if "model" not in cfg:
        raise UserError(f"{path} is no config of a model: it defines no `model`")
    if "data" in cfg and "train_dataloader" not in cfg and ("optimizer" in cfg or "runner" in cfg):
        raise UserError(
            f"{path} is written for MMDetection 2 (data, optimizer, runner): write train_dataloader, val_dataloader, "
            "test_dataloader, optim_wrapper and train_cfg, as MMDetection 3 and MMSegmentation 1 have them"
        )
    variables.follow_file(cfg, path)
    before = {key: copy.deepcopy(cfg.get(key)) for key in cfg} if options else {}
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, AssertionError, AttributeError, IndexError) as error:
        raise UserError(f"--cfg-options does not fit {path}: {_reason(error)}") from None
    check_structure(cfg, path, PARTS)
    variables.follow_options(cfg, before, options, path)
    variables.same_classes(cfg, path, options)
    variables.keep_backends(cfg)
    variables.keep_hooks(cfg)
    check_keys(cfg, path)
    if not cfg.get("default_scope"):
        # A config whose types are classes sets none; but the libraries build parts of their own by short names.
        cfg.default_scope = libraries.scope_of(cfg)
    for where, node in nodes({key: cfg.get(key) for key in ("model", "tta_model")}, ""):
        # A run writes its config with the modules of such classes, and mmcv looks for this one among its own names.
        if where.endswith(".nms") and isinstance(node, MutableMapping) and isinstance(node.get("type"), str):
            node["type"] = type_name(node)
    return cfg


def read_config(path: Path) -> Config:
    """A config file as it is.

    Raises:
        UserError: there is no such file, or it (or one of its bases) cannot be read.
    """
    check_there(path)
    try:
        cfg = Config.fromfile(path)
        # In a Python-style config a class is imported when it is first looked at.
        for name in cfg.keys() - getattr(cfg, "_imported_names", set()):
            deque(nodes(cfg.get(name), name), maxlen=0)
    except Exception as error:  # a config is code: it can raise anything
        reason = left_out(error, (Path.cwd(), path.parent)) or _reason(error)
        if "mm_vitbackbones::" in path.read_text(encoding="utf-8", errors="replace"):
            reason += '; MMEngine knows no recipe of ours by "::", so write ' + RECIPE
        raise UserError(f"{path} cannot be read: {reason}") from None
    if path.suffix != ".py":  # JSON and YAML have no tuples, and mmcv takes a size for a tuple only
        for _, node in nodes(dict(cfg.items()), ""):
            for key in SIZES & node.keys() if isinstance(node, MutableMapping) else ():
                node[key] = _as_size(node[key])
    check_structure(cfg, path, ["model"])
    return cfg


def check_structure(cfg: Config, path: Path, parts: Iterable[str]) -> None:
    """These parts of a config are dicts, or None, and every dataloader has a data set.

    Raises:
        UserError: if one is not.
    """
    for name in parts:
        node: Any = cfg
        for key in name.split("."):
            node = node.get(key)
            if node is None:
                break
        if node is not None and not isinstance(node, Mapping):
            raise UserError(f"{path}: {name} is of type {type(node).__name__}: write {name}=dict(...)")
        if name.endswith("_dataloader") and node is not None and isinstance(node.get("dataset"), NO_DATASET):
            raise UserError(f"{path}: {name} has no data set: write {name}.dataset=dict(type=...)")


def _as_size(value: Any) -> Any:
    """A list of numbers as a tuple; so are those in a list of sizes."""
    if not isinstance(value, list):
        return value
    return tuple(value) if all(isinstance(side, (int, float)) for side in value) else [_as_size(one) for one in value]


def check_there(path: Path) -> None:
    """A config file exists.

    Raises:
        UserError: if not, with the nearest files and recipes.
    """
    if path.is_file():
        return
    if path.stem in recipes.names():
        raise UserError(f"there is no config {path}; for the recipe of that name give {path.stem}, without a path")
    files = {file.name: str(file) for folder in sorted({path.parent, Path("configs")}) for file in folder.glob("*.py")}
    near = did_you_mean(path.name, files) or did_you_mean(path.stem, recipes.names()).replace("mean", "mean the recipe")
    raise UserError(f"there is no config {path}{near or '; `python -m mm_vitbackbones configs` lists the recipes'}")


def use_local_norms(cfg: Config, distributed: bool) -> None:
    """Replace ``SyncBN`` by ``BN`` without several GPUs: PyTorch refuses it there, as nothing is synchronised.
    MMEngine's ``sync_bn``, which does the reverse to all batch norms, is left out."""
    if distributed and torch.cuda.is_available():
        return
    cfg.pop("sync_bn", None)
    parts = [node for _, node in nodes(cfg.model, "model") if isinstance(node, MutableMapping)]
    found = [node for node in parts if type_name(node) in SYNCHRONISED]
    for node in found:
        node["type"] = "BN"
    if found:
        why = "this run is not distributed" if not distributed else "there is no GPU"
        print_log(f"SyncBN is replaced by BN in {len(found)} places of the model, as {why}", logger="current")


def _reason(error: Exception) -> str:
    """An exception in one line, with its type where the message alone says little."""
    message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return message if isinstance(error, SyntaxError) else f"{type(error).__name__}: {message}"
