"""The forms for CUDA on tensors of a card that is not there: all that a step makes is on the card, and of the types and
shapes that it should be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.paths import ROOT
from helpers.toys import TOYS

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("hip", [None, "7.0"], ids=["nvidia", "amd"])
def test_steps_of_all_networks_stay_on_the_card(tmp_path: Path, hip: str | None) -> None:
    from tools.benchmarks.compiled.__main__ import build

    program = (
        "import ctypes, os; ctypes.CDLL(os.environ['MM_CARD'], mode=ctypes.RTLD_GLOBAL); "
        f"import torch; torch.version.hip = {hip!r}; import helpers.fake_card"
    )
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")))
    environment = os.environ | {"MM_CARD": str(build(tmp_path)), "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [*TOYS], done.stdout[-2000:] + done.stderr[-4000:]
