"""Imports MMDetection and MMSegmentation where a config needs them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from mmengine.registry import init_default_scope

from mm_vitbackbones.errors import UserError


def load(scope: str) -> None:
    """Import the library of a scope: ``mmdet``, ``mmseg``, or ``mmengine`` itself.

    Raises:
        UserError: if it cannot be imported.
    """
    try:
        importlib.import_module(scope)
    except (ImportError, AssertionError) as error:  # mmdet and mmseg assert the version of mmcv
        raise UserError(
            f"this config needs {scope}, which cannot be imported ({error}): "
            "`python -m mm_vitbackbones doctor` says what to install"
        ) from None


def use(scope: str) -> None:
    """``load``, and make the scope the default one for short type names."""
    load(scope)
    init_default_scope(scope)


def scope_of(cfg: Mapping[str, Any]) -> str:
    """The scope of a config's short type names."""
    return cfg.get("default_scope") or "mmengine"
