"""What a run of predict has done so far, which survives any end of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mm_vitbackbones.cli.journal import NAME, Journal
from mm_vitbackbones.cli.predict import _names_beside
from mm_vitbackbones.errors import OutputError, UserError
from mm_vitbackbones.files import PARTIAL

SETTINGS = {"checkpoint": "a1", "--score-thr": 0.3}


def entry(number: int) -> dict[str, Any]:
    image = {"id": number, "file_name": f"{number}.jpg"}
    return {"image": image, "annotations": [], "counts": {}, "segments": False, "name": f"{number}", "files": []}


def begin(out: Path, *numbers: int, finished: bool = False, **settings: Any) -> list[int]:
    """Open a journal, add entries and close it; the numbers of those that it had before."""
    journal = Journal(out, {**SETTINGS, **settings})
    before = [each["image"]["id"] for each in journal.entries]
    for number in numbers:
        journal.add(entry(number))
    journal.close(finished)
    return before


def test_half_a_line_of_a_killed_run_is_cut_off(tmp_path: Path) -> None:
    begin(tmp_path, 1)
    for half in (b'{"image": {"id"', b"\0\0\0\n{", b'{"image"'):
        with (tmp_path / NAME).open("ab") as file:
            file.write(half)
        assert begin(tmp_path) == [1]
    assert begin(tmp_path, 2) == [1]
    assert begin(tmp_path) == [1, 2]


def test_run_that_ended_before_its_first_line_begins_again(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b'{"checkpo')
    assert begin(tmp_path, 1) == []
    assert begin(tmp_path) == [1]


def test_other_settings_are_named(tmp_path: Path) -> None:
    begin(tmp_path)
    with pytest.raises(UserError, match="was begun with another checkpoint: give the same"):
        begin(tmp_path, checkpoint="b2")


@pytest.mark.parametrize("line", ["[]", "7", '{"image": 3}', '{"image": {}, "annotations": []}'])
def test_what_is_not_written_by_a_run_is_refused(line: str, tmp_path: Path) -> None:
    begin(tmp_path)
    with (tmp_path / NAME).open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(UserError, match="is not as this tool wrote it"):
        begin(tmp_path)


def test_one_run_at_a_time_writes(tmp_path: Path) -> None:
    first = Journal(tmp_path, SETTINGS)
    with pytest.raises(UserError, match="is being written by another run"):
        begin(tmp_path, 1)
    first.close(finished=False)
    assert begin(tmp_path) == []


@pytest.mark.parametrize("exists", [True, False])
def test_a_planted_link_is_not_followed(exists: bool, tmp_path: Path) -> None:
    target = tmp_path / "target"
    if exists:
        target.write_text('{"checkpoint": "a1", "--score-thr": 0.3}\n')
    before = target.read_bytes() if exists else None
    out = tmp_path / "out"
    out.mkdir()
    (out / NAME).symlink_to(target)
    with pytest.raises(OutputError, match="cannot be written"):
        begin(out, 1)
    assert (target.read_bytes() if target.exists() else None) == before


def test_partial_files_of_a_killed_run_are_removed_and_no_others(tmp_path: Path) -> None:
    begin(tmp_path)
    (tmp_path / "inside").mkdir()
    ours, others = tmp_path / f"inside/{PARTIAL}0.partial", [tmp_path / "a.partial", tmp_path / f"{PARTIAL}0.png"]
    for path in (ours, *others):
        path.touch()
    begin(tmp_path)
    assert not ours.exists()
    assert all(path.exists() for path in others)


def test_only_a_finished_run_leaves_no_journal(tmp_path: Path) -> None:
    begin(tmp_path, 1)
    assert (tmp_path / NAME).is_file()
    begin(tmp_path, finished=True)
    assert not [*tmp_path.iterdir()]


def test_images_keep_the_names_of_the_run_before(tmp_path: Path) -> None:
    images = [(Path("b/0.jpg"), "0"), (Path("a/0.jpg"), "0_2"), (Path("c/0.jpg"), "0_3")]
    named = _names_beside(images, {"a/0.jpg": "0", "c/0.jpg": "x"})
    assert dict(named) == {Path("b/0.jpg"): "0_2", Path("a/0.jpg"): "0", Path("c/0.jpg"): "x"}
