"""The libraries' detectors and segmentors on plain operators, and on mmcv's compiled ones where they are there."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.library_models import DETECTORS, SEGMENTORS
from helpers.pages import models_of_libraries
from helpers.paths import ROOT
from mm_vitbackbones.mmcv_ops import lite

pytestmark = [
    pytest.mark.slow,
    pytest.mark.mmdet,
    pytest.mark.mmseg,
    pytest.mark.timeout(3600),
    pytest.mark.xdist_group("slow"),
]
NAMES = [*DETECTORS, *SEGMENTORS]
Results = dict[str, dict[str, Any]]


def run(folder: Path, *first: Path) -> Results:
    """Try all models out in a process of its own, with these folders first among those to import from."""
    path = folder / "models.jsonl"
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, [*first, ROOT, ROOT / "tests"])),
    }
    command = [sys.executable, "-m", "helpers.library_models", str(path)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {result["name"]: result for result in map(json.loads, path.read_text().splitlines())}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """In the world of mmcv-lite: mmcv's own files without the compiled extension."""
    spec = importlib.util.find_spec("mmcv")
    if spec is None or spec.origin is None:
        pytest.skip("mmcv is not installed")
    world = tmp_path_factory.mktemp("lite")
    (world / "mmcv").mkdir()
    for entry in Path(spec.origin).parent.iterdir():
        if not entry.name.startswith("_ext.") and entry.name != "__pycache__":
            (world / "mmcv" / entry.name).symlink_to(entry)
    results = run(world, world)
    assert {Path(result["extension"]).name for result in results.values()} == {"extension.py"}
    return results


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Results:
    if lite.find().state is not lite.State.COMPILED:
        pytest.skip("mmcv is not compiled")
    results = run(tmp_path_factory.mktemp("compiled"))
    assert not any(result["extension"].endswith(".py") for result in results.values())
    return results


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_and_finds_on_plain_operators(name, plain):
    result = plain[name]
    assert models_of_libraries()[name].plain == "works"
    assert "error" not in result, result["trace"]
    assert math.isfinite(result["loss"])
    assert result["without_gradient"] == []
    assert result["not_finite"] == []
    assert all(result["found"])


@pytest.mark.parametrize("name", NAMES)
def test_it_finds_the_same_on_compiled_operators(name, plain, compiled):
    expected = compiled[name]
    if missing := re.search(r"(\w+)_impl: implementation for device cpu not found", expected.get("error", "")):
        assert models_of_libraries()[name].compiled == f"CUDA alone: `{missing[1]}`"
        return
    assert models_of_libraries()[name].compiled == "equal"
    assert plain[name]["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert len(plain[name]["found"]) == len(expected["found"])
    for ours, theirs in zip(plain[name]["found"], expected["found"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)
