"""The packages that writing ONNX files needs, and nothing else of this package."""

from __future__ import annotations

import importlib.util

import torch

from mm_vitbackbones.errors import UserError

NEEDED = ("onnx", "onnxscript", "onnxruntime")
OLDEST = (2, 6)
"""The oldest PyTorch whose exporter takes translations of a package's own operations."""


def check(to: str) -> None:
    """What an export of this kind needs is installed.

    Raises:
        UserError: otherwise, with what to install.
    """
    version = tuple(map(int, torch.__version__.split(".")[:2]))
    if version < OLDEST:
        raise UserError(f"an export needs PyTorch {OLDEST[0]}.{OLDEST[1]} or newer, and this is {torch.__version__}")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None] if to == "onnx" else []
    if missing:
        raise UserError(
            f"an export to ONNX needs {', '.join(missing)}: pip install 'mm-vitbackbones[export]' (from a copy of the "
            "repository: pip install '.[export]')"
        )


def newest_opset() -> int:
    """Of ONNX, the newest one that the installed package knows. Imports onnx."""
    import onnx

    return int(onnx.defs.onnx_opset_version())
