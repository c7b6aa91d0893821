"""The tools as a user runs them, in processes of their own, on the smoke split of ``mini``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from helpers.paths import CONFIGS, ROOT, TEST_CONFIGS, TOOLS


def run_tool(name: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """tools/NAME.py with these arguments."""
    command = [sys.executable, str(TOOLS / f"{name}.py"), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def write_config(name: str, data: Path, folder: Path) -> Path:
    """One of the tests' configs with this run's paths, in a folder."""
    text = (TEST_CONFIGS / f"{name}.py").read_text()
    path = folder / f"{name}.py"
    path.write_text(text.replace("{root}", str(data)).replace("{configs}", str(CONFIGS)))
    return path
