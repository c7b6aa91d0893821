"""What a run changes in its config: to the machine, to the data, to the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from torch import nn

from mm_vitbackbones.engine.errors import UserError
from mm_vitbackbones.engine.optimizing import unmatched_rules

SEMANTIC_HEADS = {"rpn_head", "semantic_head"}
"""A proposal head tells objects from background, a semantic head beside a detector has classes of its own."""


def nodes(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every part of a config, with where it stands."""
    yield path, node
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from nodes(value, f"{path}.{key}")
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from nodes(value, f"{path}[{index}]")


def heads(model: Any) -> Iterator[tuple[str, MutableMapping[str, Any]]]:
    """The parts of a model's config that predict the classes of the data set, with where they stand."""
    for path, node in nodes(model, "model"):
        parts = {part.partition("[")[0] for part in path.split(".")}
        in_head = any(part.endswith("head") for part in parts - {"roi_head"}) and not parts & SEMANTIC_HEADS
        if in_head and isinstance(node, MutableMapping) and isinstance(node.get("num_classes"), int):
            yield path, node


def set_num_classes(cfg: Config) -> None:
    """A ``num_classes`` at the top of a config is that of every head."""
    if isinstance(count := cfg.get("num_classes"), int):
        for _, head in heads(cfg.model):
            head["num_classes"] = count


def use_local_norms(cfg: Config, distributed: bool) -> None:
    """Without several GPUs ``SyncBN`` has nothing to synchronise with, and PyTorch refuses it: ``BN`` in its place."""
    if distributed and torch.cuda.is_available():
        return
    parts = [node for _, node in nodes(cfg.model, "model") if isinstance(node, MutableMapping)]
    found = [node for node in parts if node.get("type") == "SyncBN"]
    for node in found:
        node["type"] = "BN"
    if found:
        why = "this run is not distributed" if not distributed else "there is no GPU"
        print_log(f"SyncBN is replaced by BN in {len(found)} places of the model, as {why}", logger="current")


def use_tta(cfg: Config) -> None:
    """Test at several sizes and flipped, and average, as the config says.

    Raises:
        UserError: if the config does not say how.
    """
    if missing := [name for name in ("tta_model", "tta_pipeline") if cfg.get(name) is None]:
        raise UserError(f"--tta needs {' and '.join(missing)} in the config: how to augment and how to average")
    dataset = cfg.test_dataloader.dataset
    while "dataset" in dataset:  # wrappers such as RepeatDataset
        dataset = dataset.dataset
    dataset.pipeline = cfg.tta_pipeline
    if cfg.model.get("test_cfg"):
        cfg.model.test_cfg.pop("logits", None)  # they are what is averaged
    cfg.model = {**cfg.tta_model, "module": cfg.model}


def check_rules(cfg: Config, model: nn.Module) -> None:
    """Every rule of the optimizer by name matches a parameter.

    Raises:
        UserError: for one that matches none: a misspelt name would leave its parameters at the common rate.
    """
    rules = ((cfg.get("optim_wrapper") or {}).get("paramwise_cfg") or {}).get("custom_keys")
    if missing := unmatched_rules(rules, model):
        parts = ", ".join(sorted({".".join(name.split(".")[:2]) for name, _ in model.named_parameters()})[:12])
        raise UserError(
            f"optim_wrapper.paramwise_cfg.custom_keys: {missing[0]!r} is part of no parameter's name; "
            f"the names begin with {parts}"
        )
