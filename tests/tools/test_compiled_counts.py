"""Counts of compiled training steps for a card that is not there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
PROGRAM = """
import ctypes, os
ctypes.CDLL(os.environ["MM_CARD"], mode=ctypes.RTLD_GLOBAL)
from mm_vitbackbones.backbones import PVTv2
from tools.benchmarks.compiled.counting import count
steps = count(PVTv2(arch=dict(depths=(1, 1, 1, 1)), out_indices=(0,)), 2, 64)
names = [step.name for step in steps if not step.is_generated]
print(len(steps) > len(names), names.count("mm_vitbackbones.depthwise.default"), min(step.bytes for step in steps) > 0)
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_step_is_counted_without_a_card(tmp_path: Path) -> None:
    from tools.benchmarks.compiled.__main__ import build

    environment = os.environ | {"MM_CARD": str(build(tmp_path))}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "1", "True"], done.stderr[-2000:]
