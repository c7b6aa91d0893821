"""Which checkpoint a bare ``--resume`` takes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mm_vitbackbones.engine.resume import newest_first, newest_whole
from mm_vitbackbones.errors import UserError

STATE = {"state_dict": {"weight": torch.arange(900.0)}, "optimizer": {}, "message_hub": {}, "meta": {}}


def put(path: Path, content: object = None, when: int = 0) -> None:
    torch.save(STATE if content is None else content, path)
    os.utime(path, (when, when))


def note(work_dir: Path, name: str, when: int) -> None:
    (work_dir / "last_checkpoint").write_text(f"/elsewhere/{name}")
    os.utime(work_dir / "last_checkpoint", (when, when))


def names(work_dir: Path, out_dir: Path | None = None) -> list[str]:
    return [path.name for path in newest_first(work_dir, out_dir)]


def test_file_that_a_killed_run_had_renamed_comes_before_the_one_it_had_named(tmp_path: Path) -> None:
    put(tmp_path / "epoch_9.pth", when=1)
    note(tmp_path, "epoch_9.pth", when=2)
    put(tmp_path / "epoch_10.pth", when=3)
    assert names(tmp_path) == ["epoch_10.pth", "epoch_9.pth"]


def test_later_epochs_of_an_earlier_run_come_after_the_one_named_last(tmp_path: Path) -> None:
    # As after --resume epoch_2.pth.
    for epoch in (3, 4, 5):
        put(tmp_path / f"epoch_{epoch}.pth", when=1)
    note(tmp_path, "epoch_3.pth", when=2)
    assert names(tmp_path) == ["epoch_3.pth", "epoch_5.pth", "epoch_4.pth"]


def test_checkpoint_within_an_epoch_is_between_its_neighbours(tmp_path: Path) -> None:
    for name in ("epoch_2.pth", "epoch_2_iter_11.pth", "epoch_3.pth", "epoch_10.pth", "best_acc_epoch_11.pth"):
        put(tmp_path / name)
    assert names(tmp_path) == ["epoch_10.pth", "epoch_3.pth", "epoch_2_iter_11.pth", "epoch_2.pth"]


def test_named_file_of_another_folder_or_pattern_is_found(tmp_path: Path) -> None:
    work_dir, out_dir = tmp_path / "work", tmp_path / "out" / "work"
    for folder in (work_dir, out_dir):
        folder.mkdir(parents=True)
    put(out_dir / "mine-3.pth")
    note(work_dir, "mine-3.pth", when=5)
    assert names(work_dir, out_dir) == ["mine-3.pth"]


def test_files_that_are_not_whole_are_passed_over_and_named(tmp_path: Path) -> None:
    for epoch in (1, 2, 3, 4):
        put(tmp_path / f"epoch_{epoch}.pth")
    content = (tmp_path / "epoch_4.pth").read_bytes()
    (tmp_path / "epoch_4.pth").write_bytes(content[: len(content) // 2])
    (tmp_path / "epoch_3.pth").write_bytes(b"")
    put(tmp_path / "epoch_2.pth", {"state_dict": {}})  # weights alone
    put(tmp_path / "epoch_5.pth", [1, 2])
    path, content, passed = newest_whole(newest_first(tmp_path))
    assert path.name == "epoch_1.pth"
    assert content.keys() == STATE.keys()
    assert [any(f"epoch_{n}.pth" in each for each in passed) for n in (5, 4, 3, 2)] == [True] * 4
    assert all("\n" not in each for each in passed)
    (tmp_path / "epoch_1.pth").unlink()
    with pytest.raises(UserError, match=r"no checkpoint is whole: .*epoch_5\.pth"):
        newest_whole(newest_first(tmp_path))
