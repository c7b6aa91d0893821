"""What ``dist_train.sh`` and ``dist_test.sh`` start."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from helpers.paths import ROOT

TOOLS = ROOT / "tools"


def started(tmp_path: Path, script: str, *arguments: str, **environment: str) -> list[str]:
    """The words that a script starts Python with."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), **environment}
    command = [TOOLS / script, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize(
    ("script", "given", "passed"),
    [
        ("dist_train.sh", ["a b.py", "4", "--seed", "1"], ["a b.py", "--seed", "1"]),
        ("dist_test.sh", ["a b.py", "c.pth", "4", "--out", "d e"], ["a b.py", "c.pth", "--out", "d e"]),
    ],
)
def test_arguments_reach_the_command_whole(script: str, given: list[str], passed: list[str], tmp_path: Path) -> None:
    command = str(TOOLS / f"{script.split('_')[1].removesuffix('.sh')}.py")
    expected = ["--standalone", "--nproc_per_node", "4", command, *passed, "--launcher", "pytorch"]
    assert started(tmp_path, script, *given) == [str(TOOLS / "torchrun.py"), *expected]


def test_several_machines_meet_where_the_environment_says(tmp_path: Path) -> None:
    machines = dict(NNODES="2", NODE_RANK="1", MASTER_ADDR="host")
    words = started(tmp_path, "dist_train.sh", "a.py", "8", **machines)
    where = ["--nnodes", "2", "--node_rank", "1", "--master_addr", "host", "--master_port"]
    assert words[1:9] == [*where, "29500"]
    words = started(tmp_path, "dist_train.sh", "a.py", "8", **machines, PORT="7")
    assert words[1:9] == [*where, "7"]


@pytest.mark.parametrize(("script", "given"), [("dist_train.sh", ["a.py"]), ("dist_test.sh", ["a.py", "2"])])
def test_too_few_arguments_are_one_line(script: str, given: list[str]) -> None:
    result = subprocess.run([TOOLS / script, *given], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: ")
    assert result.stderr.count("\n") == 1
