"""Trainings that are killed, stopped by a signal, or meet a full disk: what they leave, and how they are resumed."""

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
    states = content["optimizer"]["state"]
    moments = {f"{index}.{key}": value for index, state in states.items() for key, value in state.items()}
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


BY_EPOCH = [
    # Where a run is killed with SIGKILL, and what it leaves. The next run goes on from there.
    ("writing:2", "epoch_1.pth best_acc_epoch_1.pth.partial"),
    ("written:3", "epoch_1.pth best_acc_epoch_1.pth epoch_2.pth.partial"),  # after the "best" file and what names it
    ("renamed:1", "epoch_1.pth best_acc_epoch_1.pth epoch_2.pth"),
    ("noted:1", "epoch_2.pth best_acc_epoch_1.pth best_acc_epoch_2.pth"),
    ("validating:1", "epoch_3.pth best_acc_epoch_2.pth"),
    ("writing:1", "epoch_3.pth best_acc_epoch_2.pth best_acc_epoch_3.pth.partial"),
    ("training:2", "epoch_3.pth best_acc_epoch_3.pth"),
    ("noted:1", "epoch_3.pth epoch_4.pth best_acc_epoch_3.pth"),
    ("renamed:1", "epoch_4.pth best_acc_epoch_3.pth best_acc_epoch_4.pth"),
]
BY_ITERATIONS = [
    ("writing:1", "iter_4.pth.partial"),
    ("noted:1", "iter_4.pth iter_8.pth best_acc_iter_4.pth"),
    ("renamed:1", "iter_8.pth best_acc_iter_4.pth best_acc_iter_8.pth"),
    ("training:3", "iter_8.pth best_acc_iter_8.pth"),
]


@pytest.mark.parametrize(("by", "points"), [("", BY_EPOCH), ("_by_iteration", BY_ITERATIONS)], ids=["epoch", "iter"])
def test_run_that_is_killed_again_and_again_ends_as_one_that_is_not(
    by: str, points: list[tuple[str, str]], folder: Path, whole: dict[str, torch.Tensor]
) -> None:
    for point, left in points:
        result = train(folder, f"killed{by}", end=point, by=by)
        assert result.returncode == KILLED, (point, result.stdout, result.stderr)
        assert checkpoints(folder / f"killed{by}") == {*left.split()}, point
    result = train(folder, f"killed{by}", by=by)
    assert result.returncode == 0, result.stderr
    if by:
        assert train(folder, f"whole{by}", by=by).returncode == 0
        last = "iter_16.pth"
        assert_equal(weights(folder, f"killed{by}", last), weights(folder, f"whole{by}", last))
    else:
        assert_equal(weights(folder, "killed"), whole)
    assert checkpoints(folder / f"killed{by}") == checkpoints(folder / f"whole{by}")


@pytest.mark.parametrize(
    ("by", "end", "code", "saved"),
    [
        ("", "training:6 SIGTERM", TERMINATED, "epoch_1_iter_6.pth"),
        ("", "validating:6 SIGINT", INTERRUPTED, "epoch_2.pth"),
        ("_by_iteration", "training:6 SIGTERM", TERMINATED, "iter_6.pth"),
    ],
)
def test_signal_saves_and_the_resumed_run_ends_as_one_without_it(
    by: str, end: str, code: int, saved: str, folder: Path, tmp_path: Path, whole: dict[str, torch.Tensor]
) -> None:
    stopped = train(folder, str(tmp_path), end=end, by=by)
    assert stopped.returncode == code, stopped.stderr
    assert "--resume goes on from there" in stopped.stdout
    assert "Traceback" not in stopped.stderr
    assert (tmp_path / "last_checkpoint").read_text() == str(tmp_path / saved)
    result = train(folder, str(tmp_path), by=by)
    assert result.returncode == 0, result.stderr
    if not by:
        assert_equal(weights(folder, str(tmp_path)), whole)
    assert not (tmp_path / saved).exists()
    files = tmp_path.glob("*/vis_data/scalars.json")
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert sorted(line["step"] for line in lines if "acc" in line) == ([4, 8, 12, 16] if by else [1, 2, 3, 4])


def test_full_disk_costs_one_save(folder: Path, tmp_path: Path, whole: dict[str, torch.Tensor]) -> None:
    result = train(folder, str(tmp_path), end="writing:4 full")
    assert result.returncode == 0, result.stderr
    (line,) = (line for line in result.stdout.splitlines() if "is not saved" in line)
    assert f"epoch_2.pth is not saved in {tmp_path}: No space left on device; it needs 0.0" in line
    assert f"the last whole one is {tmp_path}/epoch_1.pth; the training goes on" in line
    assert_equal(weights(folder, str(tmp_path)), whole)
    assert checkpoints(tmp_path) == {"epoch_4.pth", "best_acc_epoch_4.pth"}


NO_EVALUATION = ["val_cfg=None", "val_dataloader=None", "val_evaluator=None", "default_hooks.checkpoint.save_best=None"]


@pytest.mark.parametrize(
    ("end", "options", "says"),
    [
        ("writing:4 full", ["default_hooks.checkpoint.on_failed_save=stop"], "epoch_2.pth is not saved"),
        ("writing:2 full", ["train_cfg.max_epochs=2", *NO_EVALUATION], "its last checkpoint is not saved"),
    ],
)
def test_full_disk_at_the_end_or_where_asked_ends_in_one_line(
    end: str, options: list[str], says: str, folder: Path, tmp_path: Path
) -> None:
    result = train(folder, str(tmp_path), "--cfg-options", *options, end=end)
    assert result.returncode == 2, result.stdout
    assert result.stderr.count("\n") == 1
    assert says in result.stderr
    assert "epoch_1.pth" in checkpoints(tmp_path)
    assert not list(tmp_path.glob("*.partial"))
