"""The nodes of a config, and the types that they name. Imports neither torch nor MMEngine.

A type is a name (``"CocoDataset"``), a name with a scope or a module (``"mmdet.CocoDataset"``), or, in MMEngine's
Python-style configs, the class itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

PRETRAINED = ("Pretrained", "PretrainedInit")
"""How configs call the initialisation from a file: the registered name, and the name of MMEngine's class."""

SEMANTIC_HEADS = {"rpn_head", "semantic_head"}
"""A proposal head separates objects from background. A semantic head in a detector has classes of its own."""


def nodes(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every node of a config, with its path."""
    yield path, node
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from nodes(value, f"{path}.{key}")
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from nodes(value, f"{path}[{index}]")


def type_name(node: Any) -> str:
    """The name of a node's type without its scope, whether it is written as a name or as a class; empty if there is
    none.

    Args:
        node: a node of a config, or a type.
    """
    kind = node.get("type") if isinstance(node, Mapping) else node
    return kind.rpartition(".")[2] if isinstance(kind, str) else getattr(kind, "__name__", "")


def module_of(node: Any) -> str:
    """What stands before the name of a node's type: the module of a class, the scope or the module of a name."""
    kind = node.get("type") if isinstance(node, Mapping) else node
    return kind.rpartition(".")[0] if isinstance(kind, str) else getattr(kind, "__module__", "") if kind else ""


def is_pretrained(init_cfg: Any) -> bool:
    """Whether an ``init_cfg`` names a file to start from."""
    return isinstance(init_cfg, Mapping) and type_name(init_cfg) in PRETRAINED


def heads(model: Any) -> Iterator[tuple[str, MutableMapping[str, Any]]]:
    """The parts of a model's config that predict the classes of the data set, with their paths."""
    for path, node in nodes(model, "model"):
        parts = {part.partition("[")[0] for part in path.split(".")}
        in_head = any(part.endswith("head") for part in parts - {"roi_head"}) and not parts & SEMANTIC_HEADS
        if in_head and isinstance(node, MutableMapping) and isinstance(node.get("num_classes"), int):
            yield path, node
