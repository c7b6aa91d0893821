"""torchvision's compiled operators, where torchvision is there and works."""

from __future__ import annotations

import importlib
import warnings
from functools import cache
from typing import Any

import torch


@cache
def torchvision_operators() -> Any:
    """``torch.ops.torchvision``, or None where torchvision cannot be imported or has no compiled operators.

    A torchvision that was built for another torch fails while it is imported, in many ways; then nothing of it is used.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("torchvision")
        operators = torch.ops.torchvision
        for name in ("nms", "roi_align", "_roi_align_backward"):
            getattr(operators, name)
    except Exception:
        return None
    return operators
