"""``ops --install`` and ``--remove`` in a copy of mmcv-lite."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from pathlib import Path

import pytest

from helpers.paths import ROOT
from helpers.runs import run_tool
from mm_vitbackbones.cli import ops
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.mmcv_ops import lite
from mm_vitbackbones.mmcv_ops.lite import State


def test_install_writes_three_lines_and_remove_takes_them_away(mmcv, capsys):
    before = sorted(mmcv.iterdir())
    assert lite.find() == lite.Found(State.MISSING, mmcv)
    ops.main(["--install"])
    ops.main(["--install"])
    assert len((mmcv / "_ext.py").read_text().splitlines()) == 3
    assert lite.find() == lite.Found(State.PLAIN, mmcv, mmcv / "_ext.py")
    assert capsys.readouterr().out.count("gives mmcv-lite its operators") == 2
    ops.main(["--remove"])
    assert sorted(mmcv.iterdir()) == before
    ops.main(["--remove"])
    assert capsys.readouterr().out.splitlines()[-1] == "nothing to remove: mmcv has no file of ours"


def test_programs_that_know_nothing_of_this_package_import_the_operators(mmcv):
    lite.install()
    program = "import mmcv._ext\nprint(mmcv._ext.__name__, mmcv._ext.nms.__module__)\n"
    path = os.pathsep.join(map(str, (mmcv.parent, ROOT)))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": ""}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.stdout == "mmcv._ext mm_vitbackbones.mmcv_ops.nms\n", result.stderr
    assert list(mmcv.rglob("_ext*.pyc"))
    lite.remove()
    assert not list(mmcv.rglob("_ext*"))  # nor what Python has compiled of it


def test_door_in_tools_runs_the_command():
    assert "--install" in run_tool("ops", "--help").stdout


def test_file_of_somebody_else_is_left_as_it_is(mmcv):
    (mmcv / "_ext.py").write_text("nms = None\n")
    assert lite.find().state is State.FOREIGN
    for change in (lite.install, lite.remove):
        with pytest.raises(UserError, match=r"_ext\.py"):
            change()
    assert (mmcv / "_ext.py").read_text() == "nms = None\n"


def test_link_is_not_written_through(mmcv, tmp_path):
    (mmcv / "_ext.py").symlink_to(tmp_path / "elsewhere.py")
    with pytest.raises(UserError, match="not a file of ours"):
        lite.install()
    assert (mmcv / "_ext.py").is_symlink()
    assert not (tmp_path / "elsewhere.py").exists()


def test_compiled_extension_is_never_joined_by_a_file(mmcv):
    compiled = mmcv / f"_ext{EXTENSION_SUFFIXES[0]}"
    compiled.touch()
    assert lite.find() == lite.Found(State.COMPILED, mmcv, compiled)
    with pytest.raises(UserError, match="nothing to install, this is mmcv with its compiled operators"):
        lite.install()
    assert not (mmcv / "_ext.py").exists()


def test_file_that_a_compiled_mmcv_was_installed_over_can_be_removed(mmcv):
    lite.install()
    (mmcv / f"_ext{EXTENSION_SUFFIXES[0]}").touch()
    assert lite.find().state is State.COMPILED
    assert lite.remove() == mmcv / "_ext.py"


def test_mmcv_without_ops_is_told_from_mmcv_lite(mmcv):
    (mmcv / "ops").rmdir()
    with pytest.raises(UserError, match=r"no folder ops.*pip install mmcv-lite==2\.1\.0"):
        lite.install()


def test_folder_that_an_uninstalled_mmcv_left_is_no_mmcv_and_goes_with_the_file(mmcv, monkeypatch):
    there = [str(mmcv.parent)]  # Python prefers any other mmcv to such a folder
    monkeypatch.setattr(lite.importlib.util, "find_spec", lambda name: PathFinder.find_spec(name, there))
    lite.install()
    (mmcv / "__init__.py").unlink()
    (mmcv / "ops").rmdir()
    assert lite.find() == lite.Found(State.ABSENT, mmcv)
    with pytest.raises(UserError, match=r"mmcv is not installed: pip install mmcv-lite"):
        lite.install()
    assert lite.remove() == mmcv / "_ext.py"
    assert not mmcv.exists()


def test_without_mmcv_there_is_nothing_to_write_to(mmcv, monkeypatch):
    monkeypatch.setattr(lite.importlib.util, "find_spec", lambda name: None)
    for change in (lite.install, lite.remove):
        with pytest.raises(UserError, match="mmcv is not installed"):
            change()


def test_folder_that_cannot_be_written_to_is_one_clear_error(mmcv, monkeypatch):
    def refuse(path: Path, content: bytes) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(lite, "write_whole", refuse)
    with pytest.raises(UserError, match=r"_ext\.py cannot be written: Permission denied"):
        lite.install()
