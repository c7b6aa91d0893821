"""Imports MMDetection and MMSegmentation where a config needs them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from mmengine.registry import Registry, init_default_scope

from mm_vitbackbones.errors import UserError
from mm_vitbackbones.mmcv_ops import lite
from mm_vitbackbones.nodes import module_of, nodes

LIBRARIES = ("mmdet", "mmseg")


def load(scope: str) -> None:
    """Import the library of a scope: ``mmdet``, ``mmseg``, or ``mmengine`` itself.

    Where mmcv is mmcv-lite, its operators in plain PyTorch are installed first, in this process.

    Raises:
        UserError: if it cannot be imported.
    """
    if lite.find().state is lite.State.MISSING:
        from mm_vitbackbones.mmcv_ops import extension  # with all operators; others do not need them

        extension.install()
    try:
        importlib.import_module(scope)
    except (ImportError, AssertionError, AttributeError) as error:
        # mmdet and mmseg assert the version of mmcv, which a folder that an uninstalled mmcv left does not have.
        raise UserError(
            f"this config needs {scope}, which cannot be imported ({error}): "
            "`python -m mm_vitbackbones doctor` says what to install"
        ) from None


def use(scope: str) -> None:
    """``load``, and make the scope the default one for short type names."""
    load(scope)
    init_default_scope(scope)


def scope_of(cfg: Mapping[str, Any]) -> str:
    """The scope of a config's short type names. Without a default scope, it is the library of the model's classes."""
    if scope := cfg.get("default_scope"):
        return str(scope)
    found = (module_of(node).partition(".")[0] for _, node in nodes(cfg.get("model"), "model"))
    return next((library for library in found if library in LIBRARIES), "mmengine")


def look_up(registry: Registry, name: Any) -> Any:
    """The class of a type name in the default scope; a class is returned as it is, an unknown name gives None."""
    if not isinstance(name, str):
        return name
    with registry.switch_scope_and_registry(None) as scoped:
        return scoped.get(name)
