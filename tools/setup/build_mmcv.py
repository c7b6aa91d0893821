"""Install mmcv with its compiled ops, built from source, into the environment of the Python that runs this.

    python tools/setup/build_mmcv.py mmcv==2.1.0 LOG [--no-cache]

The source is checked by its hash in constraints.txt. pip keeps the wheel that it built, so the next environment gets it
in seconds. --no-cache builds it again: pip does not know for which torch a wheel was built.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # the package is not installed yet
sys.path.insert(0, str(Path(__file__).parent))
import pinned

from mm_vitbackbones.progress import Progress

FLAGS = {"MMCV_WITH_OPS": "1", "CFLAGS": "-O3 -DNDEBUG -g0 -w", "NO_COLOR": "1"}
"""Without debug information, which takes half the time. setuptools takes CFLAGS in place of Python's own flags, which
optimise."""


def steps(lines: Iterator[str]) -> Iterator[tuple[int, int]]:
    """Pairs (done, all) of ninja's compile steps, each time that another one is done."""
    for line in lines:
        if match := re.match(r"\s*\[(\d+)/(\d+)\]", line):
            yield int(match[1]), int(match[2])


def show_progress(steps: Iterator[tuple[int, int]], clock: Callable[[], float] = time.monotonic) -> None:
    """A bar on a terminal, and a line per minute elsewhere."""
    progress = None
    for done, total in steps:
        progress = progress or Progress("  compiling mmcv", total, every=60, clock=clock)
        progress.update(done)


def pip_install(requirement: str, log: Path, use_cache: bool) -> bool:
    """Run pip, its output in the log file. Whether it succeeded."""
    command = [sys.executable, "-m", "pip", "install", "--verbose", "--disable-pip-version-check"]
    listed = log.with_name("mmcv.txt")
    listed.write_text(pinned.find(requirement) + "\n", encoding="utf-8")
    command += ["--no-build-isolation", "--no-deps", "--require-hashes", "--requirement", str(listed)]
    command += [] if use_cache else ["--no-cache-dir", "--force-reinstall"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, **FLAGS},
    )
    with log.open("w", encoding="utf-8") as file, process:
        assert process.stdout is not None

        def logged(lines: Iterator[str]) -> Iterator[str]:
            for line in lines:
                file.write(line)
                yield line

        show_progress(steps(logged(iter(process.stdout))))
        return process.wait() == 0


LOAD_OPS = """
import importlib.util, pathlib, torch
folder = pathlib.Path(importlib.util.find_spec("mmcv").submodule_search_locations[0])
file = next(path for path in folder.glob("_ext.*") if path.suffix != ".py")
spec = importlib.util.spec_from_file_location("_ext", file)
ops = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ops)
raise SystemExit(torch.cuda.is_available() and ops.get_compiling_cuda_version() == "not available")
"""


def ops_work() -> bool:
    """Whether the installed ops load with this torch and, where there is a GPU, were compiled for it.

    The extension alone is loaded: what mmcv itself imports is not installed yet.
    """
    return subprocess.run([sys.executable, "-c", LOAD_OPS], capture_output=True).returncode == 0


def cuda_problem() -> str | None:
    """mmcv compiles for CUDA where torch sees a GPU, and then needs the CUDA compiler."""
    program = (
        "import torch; from torch.utils.cpp_extension import CUDA_HOME;"
        "raise SystemExit(torch.cuda.is_available() and CUDA_HOME is None)"
    )
    if subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0:
        return None
    return (
        "torch sees a GPU, but there is no CUDA compiler to build mmcv's ops for it: install the CUDA toolkit of "
        "torch's version and set CUDA_HOME, or build for the CPU alone: CUDA_VISIBLE_DEVICES= make setup; make setup "
        "MMCV=lite builds nothing"
    )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("requirement")
    parser.add_argument("log", type=Path)
    parser.add_argument("--no-cache", action="store_true")
    arguments = parser.parse_args()
    if problem := cuda_problem():
        print(f"error: {problem}", file=sys.stderr)
        return 1
    print(
        f"Installing {arguments.requirement} with its compiled ops. Building them takes about 10 minutes on 2 cores,\n"
        f"only once: pip caches the wheel. The log is {arguments.log}.",
        flush=True,
    )
    installed = pip_install(arguments.requirement, arguments.log, use_cache=not arguments.no_cache)
    if installed and not arguments.no_cache and not ops_work():
        print("The wheel in pip's cache was built for another torch: building it again.", flush=True)
        installed = pip_install(arguments.requirement, arguments.log, use_cache=False)
    if installed and ops_work():
        return 0
    said = arguments.log.read_text(encoding="utf-8", errors="replace")
    if wrong := pinned.wrong_hash(said):
        print(wrong, file=sys.stderr)
        return 1
    print(*said.splitlines()[-20:], sep="\n", file=sys.stderr)
    print(
        f"error: mmcv's ops could not be built; the whole log is {arguments.log}; make setup MMCV=lite builds nothing",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: the next run builds mmcv again")
