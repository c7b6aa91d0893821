"""What the package does with files."""

from __future__ import annotations

import csv
import errno
import os
import resource
import stat
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from mm_vitbackbones import files
from mm_vitbackbones.errors import OutputError
from mm_vitbackbones.files import check_room, own_names, to_csv, to_jpeg, tracked, why_no_file, write_files, write_whole


def test_a_file_is_whole_or_as_before_when_the_disk_is_full(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_whole(path, b"before")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(OutputError, match=f"{path} cannot be written: File too large"):
            write_whole(path, bytes(10000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_bytes() == b"before"
    assert [*tmp_path.iterdir()] == [path]


def test_a_full_disk_is_said_with_the_space_that_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"No space left on device \([0-9.]+ .* are free\)"):
        write_whole(tmp_path / "a", b"1")
    assert [*tmp_path.iterdir()] == []


def test_a_planted_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.write_text("mine")
    out.mkdir()
    monkeypatch.setattr(files.secrets, "token_hex", lambda count: "known")
    (out / f"{files.PARTIAL}known.partial").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_whole(out / "a", b"theirs")
    monkeypatch.undo()
    (out / "a").symlink_to(victim)
    write_whole(out / "a", b"new")  # in place of the link
    assert (victim.read_text(), (out / "a").is_symlink(), (out / "a").read_bytes()) == ("mine", False, b"new")


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_is_there_is_replaced_only_where_it_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    write_whole(tmp_path / "a", b"1", replace=False)
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "a", b"2", replace=False)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"1")]
    write_whole(tmp_path / "a", b"2")
    assert (tmp_path / "a").read_bytes() == b"2"


def test_files_are_written_in_folders_and_never_over_others(tmp_path: Path) -> None:
    write_files(tmp_path / "new", {"a": b"1", "deep/er/b": b"2"})
    assert (tmp_path / "new/deep/er/b").read_bytes() == b"2"
    with pytest.raises(OutputError, match="new/a is there already, and nothing is overwritten: name another file"):
        write_files(tmp_path / "new", {"c": b"3", "a": b"4"})
    assert (tmp_path / "new/a").read_bytes() == b"1"


def test_cells_of_a_csv_file_keep_numbers_and_names(tmp_path: Path) -> None:
    rows = [
        ['a, "b"', 1, 0.1 + 0.2, True],
        ["line\nend \x1b \u4e2d", np.int64(2**40), np.float32(0.1), np.bool_(False)],
        [None, np.float64("nan"), float("inf"), "1e-5"],
    ]
    content = to_csv(["name", "x\ny"], iter(rows))
    assert content.endswith(b"\n")
    assert b"\r" not in content
    assert [*csv.reader(content.decode().splitlines())] == [
        ["name", "x\\ny"],
        ['a, "b"', "1", "0.30000000000000004", "True"],
        ["line\\nend \\x1b \u4e2d", "1099511627776", "0.10000000149011612", "False"],
        ["", "", "", "1e-5"],
    ]


def test_a_jpeg_of_more_quality_is_nearer_to_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 48), np.uint8)
    errors = []
    for quality in (30, 95):
        file = np.frombuffer(to_jpeg(image, quality), np.uint8)
        assert bytes(file[:2]) == b"\xff\xd8"
        errors.append(np.abs(cv2.imdecode(file, cv2.IMREAD_GRAYSCALE).astype(float) - image).mean())
    assert errors[1] < errors[0] / 2


def test_a_file_with_a_long_name_is_written(tmp_path: Path) -> None:
    write_whole(tmp_path / ("a" * 255), b"1")
    assert os.listdir(tmp_path) == ["a" * 255]


def test_a_folder_without_room_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_room(tmp_path / "a/b", "--out a/b", 1000)
    with pytest.raises(OutputError, match=r"--out a: .* are free in .*, and at least 1048576.0 GiB are needed"):
        check_room(tmp_path / "a/b", "--out a", 2**50)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"--out f: .*file is no folder"):
        check_room(tmp_path / "file/deeper", "--out f")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="read-only disk"):
        check_room(tmp_path / "a/b", "--out a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "a"], ["a", "a_2"]),
        (["a", "a", "a_2"], ["a", "a_2", "a_2_2"]),
        (["a", "a_labels"], ["a", "a_labels_2"]),
        (["a_labels", "a"], ["a_labels", "a_2"]),
        (["b/a", "B/A"], ["b/a", "B/A_2"]),
        (["\u00e9", "e\u0301"], ["\u00e9", "e\u0301_2"]),
        (["a", "a.png/b"], ["a_2", "a.png/b"]),  # a file and a folder
        (["taken"], ["taken_2"]),
        (["x" * 250, "x" * 245], ["x" * 244, "x" * 242 + "_2"]),
        (["\u00e9" * 140], ["\u00e9" * 122]),
        ([".a", "a.b"], [".a", "a.b"]),
    ],
)
def test_no_two_inputs_have_an_output_of_the_same_name(names: list[str], expected: list[str], tmp_path: Path) -> None:
    found = own_names(names, (".png", "_labels.png"), ["taken.png"])
    assert found == expected
    paths = [tmp_path / f"{name}{ending}" for name in found for ending in (".png", "_labels.png")]
    for path in paths:
        path.parent.mkdir(exist_ok=True, parents=True)
        write_whole(path, b"", replace=False)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    found = {name: why_no_file(tmp_path / name) for name in ("pipe", "file", ".", "none")}
    assert found == {"pipe": "a named pipe", "file": "", ".": "a folder", "none": ""}
    assert why_no_file("/dev/null") == "a device"


def test_files_of_a_user_are_not_among_those_that_git_knows(tmp_path: Path) -> None:
    folder = tmp_path / "configs"
    (folder / "parts").mkdir(parents=True)
    for name in ("ours.py", "parts/part.py", "mine.py"):
        (folder / name).touch()
    assert [path.name for path in tracked(folder)] == ["mine.py", "ours.py", "part.py"]  # there is no git
    for command in (["init", "-q"], ["add", "configs/ours.py", "configs/parts"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    assert tracked(folder) == [folder / "ours.py", folder / "parts/part.py"]


def test_in_another_projects_repository_no_file_is_left_out(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    copy = tmp_path / "vendor" / "configs"
    copy.mkdir(parents=True)
    (copy / "ours.py").touch()
    assert tracked(copy) == [copy / "ours.py"]


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    flush, replace = os.fsync, os.replace

    def flushed(file: int) -> None:
        done.append("flush a folder" if stat.S_ISDIR(os.fstat(file).st_mode) else "flush a file")
        flush(file)

    def replaced(source: Path, path: Path) -> None:
        done.append("rename")
        replace(source, path)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", replaced)
    (tmp_path / "a.partial").write_bytes(b"new")
    (tmp_path / "a").write_bytes(b"old")
    files.settle(tmp_path / "a.partial", tmp_path / "a")
    assert done == ["flush a file", "rename", "flush a folder"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    done.clear()
    files.write_whole(tmp_path / "b", b"new")
    assert done == ["flush a file", "rename"]
