"""Trainings that are killed, stopped by a signal, or meet a full disk: what they leave, and how they are resumed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.locks import held
from helpers.paths import ROOT
from helpers.runs import run_line
from helpers.toy_training import BY_ITERATION, CONFIG
from mm_vitbackbones.engine.resume import newest_first, newest_whole

pytestmark = pytest.mark.xdist_group("ended")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ended")
    (folder / "toy.py").write_text(CONFIG.replace("WORKERS", "0"))
    (folder / "toy_by_iteration.py").write_text(BY_ITERATION)
    return folder


def train(
    folder: Path, work_dir: str, *options: str, end: str = "", by: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """A training, or what is left of it, which ends at a point."""
    resume = "--resume" if list((folder / work_dir).glob("*.pth")) else ""
    line = f"python tools/train.py toy{by}.py --work-dir {work_dir} --skip-checks {resume} {' '.join(options)}"
    return run_line(line, folder, END_AT=end, **environment)


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
    # Where a run is ended, by SIGKILL if nothing else is named, and what it leaves. The next run goes on from there.
    ("writing:2", "epoch_1.pth best_acc_epoch_1.pth.partial"),
    ("written:3", "epoch_1.pth best_acc_epoch_1.pth epoch_2.pth.partial"),  # after the "best" file and what names it
    ("renamed:1", "epoch_1.pth epoch_2.pth best_acc_epoch_1.pth"),
    ("noted:1", "epoch_2.pth best_acc_epoch_1.pth best_acc_epoch_2.pth"),
    ("training:2 SIGTERM,SIGTERM", "epoch_2.pth best_acc_epoch_2.pth"),
    ("training:2 SIGTERM", "epoch_2.pth epoch_2_iter_10.pth best_acc_epoch_2.pth"),
    ("validating:1 SIGINT", "epoch_3.pth best_acc_epoch_2.pth"),
    ("writing:1", "epoch_3.pth best_acc_epoch_2.pth best_acc_epoch_3.pth.partial"),
    ("noted:2", "epoch_3.pth epoch_4.pth best_acc_epoch_3.pth"),
    ("renamed:1", "epoch_4.pth best_acc_epoch_3.pth best_acc_epoch_4.pth"),
]
BY_ITERATIONS = [
    ("writing:1", "iter_4.pth.partial"),
    ("renamed:5", "iter_8.pth best_acc_iter_4.pth best_acc_iter_8.pth"),
    ("training:2 SIGTERM", "iter_10.pth best_acc_iter_8.pth"),
]
CODES = {"": -signal.SIGKILL, "SIGTERM,SIGTERM": -signal.SIGTERM, "SIGTERM": 128 + 15, "SIGINT": 128 + 2}


@pytest.mark.parametrize(("by", "ends"), [("", BY_EPOCH), ("_by_iteration", BY_ITERATIONS)], ids=["epoch", "iter"])
def test_run_that_is_ended_again_and_again_learns_what_one_learns_that_is_not(
    by: str, ends: list[tuple[str, str]], folder: Path, whole: dict[str, torch.Tensor]
) -> None:
    work_dir, last = folder / f"ended{by}", "iter_16.pth" if by else "epoch_4.pth"
    for end, left in ends:
        result = train(folder, work_dir.name, end=end, by=by)
        how = end.partition(" ")[2]
        assert result.returncode == CODES[how], (end, result.stdout, result.stderr)
        assert checkpoints(work_dir) == {*left.split()}, end
        assert ("--resume goes on from there" in result.stdout) == (how in ("SIGTERM", "SIGINT")), end
        assert "Traceback" not in result.stderr
    result = train(folder, work_dir.name, by=by)
    assert result.returncode == 0, result.stderr
    if by:
        assert train(folder, f"whole{by}", by=by).returncode == 0
    expected = weights(folder, f"whole{by}", last) if by else whole
    assert_equal(weights(folder, work_dir.name, last), expected)
    assert checkpoints(work_dir) == checkpoints(folder / f"whole{by}")
    lines = [line for file in work_dir.glob("*/vis_data/scalars.json") for line in file.read_text().splitlines()]
    evaluated = {each["step"] for each in map(json.loads, lines) if "acc" in each}
    assert evaluated == ({4, 8, 12, 16} if by else {1, 2, 3, 4})


def test_second_run_in_a_work_dir_ends_in_one_line_and_writes_nothing(folder: Path, tmp_path: Path) -> None:
    with held(tmp_path):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        result = train(folder, str(tmp_path))
        assert result.returncode == 2
        assert result.stderr.count("\n") == 1
        assert f"another training runs in {tmp_path}" in result.stderr
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


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


# ---- kills at random times


def assert_little_is_lost(work_dir: Path) -> None:
    """There is a whole checkpoint, with one interval or less before what the killed run had reached."""
    reached = int((work_dir / "reached_0").read_text()) if (work_dir / "reached_0").is_file() else 0
    if reached > 4:
        _, checkpoint, passed = newest_whole(newest_first(work_dir))
        assert passed == []
        assert reached - checkpoint["meta"]["iter"] <= 4


def is_over(result: subprocess.CompletedProcess[str]) -> bool:
    """Whether a training came to its end; the kill of the run before may have come after it."""
    return result.returncode == 0 or "nothing left to resume" in result.stderr


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("by", ["", "_by_iteration"])
def test_kills_at_random_times(by: str, folder: Path) -> None:
    times, kills, while_writing, runs = random.Random(0), 0, 0, 0
    last = "iter_16.pth" if by else "epoch_4.pth"
    assert train(folder, f"random{by}", by=by).returncode == 0
    expected = weights(folder, f"random{by}", last)
    while kills < 25:
        work_dir, code = folder / f"random{by}_{runs}", -signal.SIGKILL
        while code == -signal.SIGKILL:
            result = train(folder, work_dir.name, by=by, KILL_AFTER=f"{times.uniform(0.0, 1.2)}")
            code = result.returncode
            kills += code == -signal.SIGKILL
            while_writing += bool(list(work_dir.glob("*.partial")))
            assert_little_is_lost(work_dir)
        assert is_over(result), result.stderr
        assert_equal(weights(folder, work_dir.name, last), expected)
        assert checkpoints(work_dir) >= checkpoints(folder / f"random{by}")
        runs += 1
    print(f"{kills} kills in {runs} runs, {while_writing} while a file was written")
    assert while_writing > 0


def train_in_two(folder: Path, work_dir: str, **environment: str) -> subprocess.CompletedProcess[str]:
    resume = ["--resume"] if list((folder / work_dir).glob("*.pth")) else []
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    variables = {"PYTHON": sys.executable, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    command = ["bash", str(ROOT / "tools/dist_train.sh"), "toy.py", "2", "--work-dir", work_dir, "--skip-checks"]
    return subprocess.run(
        [*command, *resume], cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_kills_at_random_times_of_two_processes(folder: Path) -> None:
    times, kills, runs = random.Random(0), 0, 0
    assert train_in_two(folder, "two").returncode == 0
    expected = weights(folder, "two")
    while kills < 10:
        work_dir = folder / f"two_{runs}"
        while True:
            rank = ("0", "1", "all")[kills % 3]
            result = train_in_two(folder, work_dir.name, KILL_AFTER=f"{times.uniform(0.1, 1.5)}", KILL_RANK=rank)
            if is_over(result):
                break
            assert "Signal 9 (SIGKILL)" in result.stderr, result.stderr
            kills += 1
            assert_little_is_lost(work_dir)
        assert_equal(weights(folder, work_dir.name), expected)
        assert checkpoints(work_dir) >= {"epoch_4.pth", "best_acc_epoch_4.pth"}
        runs += 1
    print(f"{kills} kills in {runs} runs")


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_signal_to_one_of_two_processes_saves(rank: str, folder: Path, tmp_path: Path) -> None:
    stopped = train_in_two(folder, str(tmp_path), END_AT="training:3 SIGTERM", END_RANK=rank)
    assert stopped.returncode != 0
    assert "--resume goes on from there" in stopped.stdout, stopped.stderr
    assert checkpoints(tmp_path) >= {"epoch_1.pth", "epoch_1_iter_3.pth"}
    resumed = train_in_two(folder, str(tmp_path))
    assert resumed.returncode == 0, resumed.stderr
    if not (folder / "two").is_dir():
        assert train_in_two(folder, "two").returncode == 0
    assert_equal(weights(folder, str(tmp_path)), weights(folder, "two"))
