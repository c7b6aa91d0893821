"""Trainings that are killed, stopped by a signal, or meet a full disk: what they leave, and that they can be resumed."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from helpers.runs import run_line
from helpers.toy_training import BY_ITERATION, CONFIG

KILLED, TERMINATED, INTERRUPTED = -signal.SIGKILL, 128 + signal.SIGTERM, 128 + signal.SIGINT

pytestmark = pytest.mark.xdist_group("ended")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ended")
    (folder / "numbers.py").write_text(CONFIG.replace("WORKERS", "0"))
    (folder / "numbers_by_iteration.py").write_text(BY_ITERATION)
    return folder


def train(folder: Path, work_dir: str, *options: str, end: str = "", by: str = "") -> subprocess.CompletedProcess[str]:
    """A training, or what is left of it, which ends at a point."""
    resume = "--resume" if list((folder / work_dir).glob("*.pth")) else ""
    line = f"python tools/train.py numbers{by}.py --work-dir {work_dir} --skip-checks {resume} {' '.join(options)}"
    return run_line(line, folder, END_AT=end)


def weights(folder: Path, work_dir: str, name: str = "epoch_4.pth") -> dict[str, torch.Tensor]:
    """All that a training has learnt: the weights, their averages and the optimizer's moments."""
    content = torch.load(folder / work_dir / name, weights_only=True)
    moments = {
        f"{index}.{key}": value for index, state in content["optimizer"]["state"].items() for key, value in state.items()
    }
    return {**content["state_dict"], **content["ema_state_dict"], **moments}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def checkpoints(work_dir: Path) -> set[str]:
    return {path.name for path in work_dir.iterdir() if ".pth" in path.name}


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, torch.Tensor]:
    result = train(folder, "whole")
    assert result.returncode == 0, result.stderr
    assert checkpoints(folder / "whole") == {"epoch_4.pth", "best_acc_epoch_4.pth"}
    return weights(folder, "whole")


POINTS = ("writing:2", "writing:4", "written:1", "written:2", "renamed:1", "renamed:3", "noted:1", "noted:2", "training:3")
"""The first run is killed while it writes its first "best" file, the second one two epochs later, and so on."""


def test_run_that_is_killed_again_and_again_ends_with_the_same_weights(
    folder: Path, whole: dict[str, torch.Tensor]
) -> None:
    for point in POINTS:
        result = train(folder, "killed", end=point)
        print(point, result.returncode, result.stdout, result.stderr, checkpoints(folder / "killed"))
    assert train(folder, "killed").returncode == 0
    assert_equal(weights(folder, "killed"), whole)
    assert checkpoints(folder / "killed") == {"epoch_4.pth", "best_acc_epoch_4.pth"}
