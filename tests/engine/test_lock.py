"""A work dir is held by one training, and not by a dead one."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from helpers.locks import held
from mm_vitbackbones.engine.lock import NAME, work_dir_lock
from mm_vitbackbones.errors import UserError


def test_work_dir_is_free_again_when_its_holder_is_killed(tmp_path: Path) -> None:
    with held(tmp_path):
        with (
            pytest.raises(UserError, match=r"another training runs in .* \(process 7 on there\)"),
            work_dir_lock(tmp_path, "none"),
        ):
            pytest.fail("two processes hold it")
        assert (tmp_path / NAME).read_text() == "process 7 on there"
    assert (tmp_path / NAME).exists()
    with work_dir_lock(tmp_path, "none"):
        assert (tmp_path / NAME).read_text().startswith("process ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("launcher", "variable"), [("pytorch", "RANK"), ("none", "RANK"), ("slurm", "SLURM_PROCID")])
def test_first_process_holds_it_for_all(
    launcher: str, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "1")
    with held(tmp_path), work_dir_lock(tmp_path, launcher):
        pass
    monkeypatch.setenv(variable, "0")
    with held(tmp_path), pytest.raises(UserError), work_dir_lock(tmp_path, launcher):
        pass


def test_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match="cannot be written to: Not a directory"),
        work_dir_lock(tmp_path / "file/x", "none"),
    ):
        pass


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / NAME).symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="cannot be written to"), work_dir_lock(tmp_path, "none"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


def test_lock_of_a_file_that_its_last_holder_removes_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, removed = fcntl.lockf, []

    def locked_too_late(file: int, how: int) -> None:
        if not removed:
            removed.append(file)
            (tmp_path / NAME).unlink()
        lock(file, how)

    monkeypatch.setattr(fcntl, "lockf", locked_too_late)
    with work_dir_lock(tmp_path, "none"):
        assert removed
        assert (tmp_path / NAME).read_text().startswith("process ")
