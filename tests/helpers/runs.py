"""The tools as a user runs them, in processes of their own, on the smoke split of ``mini``."""

from __future__ import annotations

import atexit
import functools
import json
import logging
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.logging import MMLogger

from helpers.paths import CONFIGS, ROOT, TEST_CONFIGS, TOOLS


def run_tool(name: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """tools/NAME.py with these arguments, in a process of its own."""
    return run_program([str(TOOLS / f"{name}.py"), *map(str, arguments)], os.getcwd())


def run_line(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A line that a reader types in a folder: ``python -m mm_vitbackbones ...`` or ``python tools/...``. A
    ``PYTHONPATH=...`` may stand before it."""
    words = shlex.split(line, comments=True)
    if words[0].startswith("PYTHONPATH="):
        environment["PYTHONPATH"] = words.pop(0).partition("=")[2]
    if words[:3] == ["python", "-m", "mm_vitbackbones"]:
        return run_program([str(ROOT / "mm_vitbackbones/__main__.py"), *words[3:]], str(folder), environment)
    assert words[0] == "python"
    assert words[1].startswith("tools/")
    return run_program([str(ROOT / words[1]), *words[2:]], str(folder), environment)


def run_program(
    command: list[str], folder: str, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A program with its arguments, in a process of its own that begins in a folder."""
    # With the packages of this process: those that files in ONNX need are in a folder of their own.
    paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), **(variables or {})}
    with tempfile.TemporaryDirectory() as streams:
        out, err = Path(streams, "out"), Path(streams, "err")
        out.touch()
        err.touch()
        request = {"command": command, "environment": environment, "folder": folder}
        code = _answer(json.dumps({**request, "out": str(out), "err": str(err)}))
        return subprocess.CompletedProcess(command, code, out.read_text("utf-8"), err.read_text("utf-8"))


def _answer(request: str) -> int:
    process = _warm_process()
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(f"{request}\n")
        process.stdin.flush()
        return int(process.stdout.readline())
    except BaseException:  # a test that took too long: its answer would come to the next one
        process.kill()
        _warm_process.cache_clear()
        raise


@functools.cache
def _warm_process() -> subprocess.Popen[str]:
    """See helpers/warm.py. It ends before this process does."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    command = [sys.executable, "-m", "helpers.warm"]
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    atexit.register(process.communicate)  # its input ends
    return process


def write_config(name: str, data: Path, folder: Path) -> Path:
    """One of the tests' configs with this run's paths, in a folder."""
    text = (TEST_CONFIGS / f"{name}.py").read_text()
    path = folder / f"{name}.py"
    path.write_text(text.replace("{root}", str(data)).replace("{configs}", str(CONFIGS)))
    return path


def log_to_stdout() -> None:
    """Have MMEngine's loggers write to today's stdout, and not to that of the test in which they were built, which may
    be closed since."""
    for logger in MMLogger._instance_dict.values():
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.stream = sys.stdout  # `setStream` would write to the closed one
