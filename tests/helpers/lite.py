"""mmcv-lite: the installed mmcv without its extension, which is the one difference between the two."""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from mm_vitbackbones.mmcv_ops import lite

needs_compiled_mmcv = pytest.mark.skipif(
    lite.find().state is not lite.State.COMPILED, reason="needs mmcv's compiled operators: make test-all MMCV=compiled"
)
"""Of the tests that compare with mmcv's own operators. All others run with mmcv-lite."""


def copy_of_lite(folder: Path) -> Path:
    """Copy mmcv-lite to ``folder/mmcv``, and return the folder: first on the path, it hides the installed mmcv."""
    spec = find_spec("mmcv")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs mmcv")
    left_out = shutil.ignore_patterns("_ext*", "csrc", "__pycache__", "*.so", ".mim")
    shutil.copytree(spec.submodule_search_locations[0], folder / "mmcv", ignore=left_out)
    return folder


def use_mmcv_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, let Python find the mmcv of a folder first, as if none was imported yet."""
    monkeypatch.syspath_prepend(folder)
    for name in [name for name in sys.modules if name == "mmcv" or name.startswith("mmcv.")]:
        monkeypatch.delitem(sys.modules, name)
