"""``python -m mm_vitbackbones``: the door to the commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

from helpers.paths import ROOT
from helpers.runs import run_line, run_program, write_config
from mm_vitbackbones import __main__ as door


@pytest.fixture(autouse=True)
def own_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    """MMEngine keeps the default scope, which a command sets, and its logger for the whole process."""
    for singleton in (DefaultScope, MMLogger):
        monkeypatch.setattr(singleton, "_instance_dict", OrderedDict())


WITH_CONFIG = {
    "train": [],
    "test": ["epoch_12.pth"],
    "predict": ["epoch_12.pth", "image.png"],
    "describe": [],
    "check_data": [],
    "try_config": [],
}
"""The commands that take a config, and what else they need."""


def run_module(*arguments: str, cwd: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; ``before`` is run first."""
    program = f"{before}\nimport runpy, sys\nsys.argv = ['', {', '.join(map(repr, arguments))}]\n"
    program += "runpy.run_module('mm_vitbackbones', run_name='__main__', alter_sys=True)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", program], env=environment, cwd=cwd, capture_output=True, text=True)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main(["--help"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]]
    assert listed == [*door.COMMANDS, "doctor"]


def test_help_imports_no_library(tmp_path: Path) -> None:
    before = "import atexit\natexit.register(lambda: print({'torch', 'mmengine', 'numpy'} & set(sys.modules)))"
    result = run_module("help", cwd=tmp_path, before=before)
    assert result.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("command", door.COMMANDS)
def test_every_command_has_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        door.main([command, "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


def test_help_calls_the_command_as_the_user_did(tmp_path: Path) -> None:
    result = run_line("python -m mm_vitbackbones check-data --help", tmp_path)
    assert result.stdout.startswith("usage: python -m mm_vitbackbones check_data ")
    result = run_line("python tools/check_data.py --help", tmp_path)
    assert result.stdout.startswith("usage: tools/check_data.py ")


def test_commands_have_the_packages_of_the_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/own_package.py").touch()
    (tmp_path / "imports.py").write_text("from own_package import __file__ as file\nprint(file)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    outcome = run_program([str(tmp_path / "imports.py")], str(tmp_path))
    assert outcome.stdout == f"{tmp_path}/packages/own_package.py\n", outcome.stderr


def test_unknown_command_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main(["traim"]) == 2
    assert capsys.readouterr().err == "error: there is no command 'traim'; did you mean 'train'?\n"


def test_missing_library_is_one_line_that_names_the_doctor(tmp_path: Path) -> None:
    before = "import sys\nsys.modules['mmengine'] = None"
    result = run_module("describe", "PVT", cwd=tmp_path, before=before)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "python -m mm_vitbackbones doctor" in result.stderr


@pytest.mark.mmdet
def test_torchrun_starts_one_run_of_several_processes(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("mmdet")
    config = write_config("tiny_detector", data, tmp_path)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "mm_vitbackbones")
    arguments = ("train", config, "--work-dir", "run", "--cfg-options", "train_cfg.max_epochs=1")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *torchrun, *map(str, arguments)]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    # 16 images in 2 processes of 4 images each; one of them writes the log.
    log = next((tmp_path / "run").glob("*/*.log")).read_text()
    assert re.search(r"Epoch\(train\) +\[1\]\[2/2\]", log)
    assert len([*(tmp_path / "run").glob("*/*.log")]) == 1


# ---- configs by name


@pytest.mark.parametrize("command", WITH_CONFIG)
def test_misspelt_recipe_is_refused_with_the_nearest(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main([command, "retinanet_pvt_xs_coco", *WITH_CONFIG[command]]) == 2
    said = capsys.readouterr().err
    assert "recipe 'retinanet_pvt_xs_coco'; did you mean 'retinanet_pvt_s_coco'" in said
    assert said.count("\n") == 1


@pytest.mark.mmdet
@pytest.mark.parametrize(
    ("command", "message"),
    [  # what is missing in an empty folder, once the recipe has been read
        ("train", "no file data/coco/annotations/instances_train2017.json"),
        ("check_data", "no file data/coco/annotations/instances_train2017.json"),
        ("test", "epoch_12.pth"),
        ("predict", "image.png"),
    ],
)
def test_recipe_is_found_from_any_folder(
    command: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("mmdet")
    monkeypatch.chdir(tmp_path)
    assert door.main([command, "retinanet_pvt_s_coco", *WITH_CONFIG[command]]) == 2
    assert message in capsys.readouterr().err


def test_recipe_is_described_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert door.main(["describe", "retinanet_pvt_s_coco"]) == 0
    assert "PVT small, image 512x512" in capsys.readouterr().out


def test_path_wins_over_a_recipe_and_a_bare_name_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own = 'model = dict(backbone=dict(type="mm_vitbackbones.PVTv2", arch="b0"))\n'
    (tmp_path / "retinanet_pvt_s_coco.py").write_text(own)
    for target, described in (
        ("retinanet_pvt_s_coco.py", "PVTv2 b0"),
        ("./retinanet_pvt_s_coco.py", "PVTv2 b0"),
        ("retinanet_pvt_s_coco", "PVT small"),
    ):
        assert door.main(["describe", target]) == 0
        assert described in capsys.readouterr().out


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("configs/retinanet_pvt_s_coco.py", "for the recipe of that name give retinanet_pvt_s_coco, without a path"),
        ("retinanet_pvt_xs_coco.py", "did you mean the recipe 'retinanet_pvt_s_coco'"),
        ("own", "there is no recipe 'own'; `python -m mm_vitbackbones configs` lists them; for the file give its path"),
    ],
)
def test_wrong_path_is_refused_with_what_was_meant(
    target: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").touch()
    assert door.main(["check_data", target]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("base", ["mm_vitbackbones::retinanet_pvt_s_coco.py", "mm_vitbackbones::configs/x.py"])
def test_openmmlabs_form_of_a_base_is_refused_with_ours(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text(f'_base_ = "{base}"\n')
    assert door.main(["check_data", str(tmp_path / "own.py")]) == 2
    said = capsys.readouterr().err
    assert '_base_ = __import__("mm_vitbackbones").recipe("NAME")' in said
    assert said.count("\n") == 1
