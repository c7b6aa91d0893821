"""All kernels compile for cards that are not there, as networks of published widths start them, and fit on them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.paths import ROOT

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None
    or not Path(importlib.util.find_spec("triton").submodule_search_locations[0], "backends/nvidia/bin/ptxas").exists(),
    reason="Triton has no compiler for NVIDIA's cards here",
)

SHARED = {80: 99, 90: 227}
"""By compute capability, the KiB of shared memory that a program may have. 8.0 has 163; 8.6 and 8.9, with the same
instructions, 99."""
SPILLED = 64
"""Bytes of a thread's registers that the assembler may keep in memory. It gives up some by itself where one more
program can then run at the same time: up to 32 bytes here. A tile that is too large costs hundreds."""


def compiled(*arguments: str, folder: Path) -> tuple[set[str], list[dict[str, Any]]]:
    """The names of all kernels, and what compiling them gave."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), environment.get("PYTHONPATH", "")])
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "helpers.compiled_kernels", *arguments],
        env=environment | {"PYTHONPATH": paths, "TRITON_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    names, *found = map(json.loads, process.stdout.splitlines())
    return {*names}, found


def check(names: set[str], found: list[dict[str, Any]], capabilities: set[int]) -> None:
    assert {each["kernel"] for each in found} == names
    assert {each["capability"] for each in found} == capabilities
    assert not [each for each in found if "error" in each]
    assert not [each for each in found if each["stack"] > SPILLED or each["local"] > 0]
    assert not [each for each in found if each["shared"] > SHARED[each["capability"]] * 1024]
    assert not [each for each in found if each["scratch"]], "launch.py starts no kernel with scratch memory directly"


def test_kernels_compile_and_fit_on_a_card(tmp_path: Path) -> None:
    check(*compiled("90", folder=tmp_path), {90})


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_kernels_compile_and_fit_on_cards_in_each_form_that_networks_start(tmp_path: Path) -> None:
    check(*compiled("80", "90", "--launches", "each", folder=tmp_path), {80, 90})
