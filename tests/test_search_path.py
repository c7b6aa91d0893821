"""The current folder is not where the commands look for modules."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.paths import ROOT, TOOLS
from mm_vitbackbones import search_path
from mm_vitbackbones.cli.config import read_config
from mm_vitbackbones.errors import UserError


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in which each module, when it is run, leaves a file ``ran-NAME``."""
    folder = tmp_path / "planted"
    folder.mkdir()
    for name in ("torch", "mmengine", "numpy", "cv2", "argparse", "planted"):
        (folder / f"{name}.py").write_text(f"open({str(folder / f'ran-{name}')!r}, 'w').close()\n")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return folder


def ran(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("ran-*"))


def python(*arguments: str, path: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(path), **variables}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)


def test_planted_module_is_one_that_python_would_run(planted):
    """Else the other tests could not fail."""
    python("-m", "mm_vitbackbones.errors")
    assert python("-c", "import torch").returncode == 0
    assert ran(planted) == ["ran-torch"]


@pytest.mark.parametrize("command", [("help",), ("describe", "PVTv2")])
def test_command_runs_no_module_of_the_current_folder(command, planted):
    outcome = python("-m", "mm_vitbackbones", *command)
    assert outcome.returncode == 0, outcome.stderr
    assert ran(planted) == []


@pytest.mark.slow
def test_doctor_runs_no_module_of_the_current_folder(planted):
    outcome = python("-m", "mm_vitbackbones", "doctor")
    assert "Ready" in outcome.stdout, outcome.stderr
    assert ran(planted) == []


LAUNCHER = """
import subprocess, sys
def main():
    print("arguments:", *sys.argv[1:])
    sys.exit(subprocess.run([sys.executable, "-c", "import torch; print(torch.__file__)"]).returncode)
"""


@pytest.mark.parametrize("script", ["dist_train.sh", "dist_test.sh"])
def test_launcher_runs_no_module_of_the_current_folder(script, planted, tmp_path):
    """A small package in place of torch shows which one is imported, there and in a process that it starts."""
    package = tmp_path / "lib" / "torch" / "distributed"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "run.py").write_text(LAUNCHER)
    arguments = ["a.py", "2"] if script == "dist_train.sh" else ["a.py", "b.pth", "2"]
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path / "lib")}
    outcome = subprocess.run([TOOLS / script, *arguments], env=environment, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    assert "--nproc_per_node 2" in outcome.stdout
    if sys.version_info >= (3, 11):
        assert outcome.stdout.splitlines()[-1] == str(package.parent / "__init__.py")
        assert ran(planted) == []
    else:  # the process that `-c` starts has the current folder on its path
        assert ran(planted) in ([], ["ran-torch"])


@pytest.mark.slow
@pytest.mark.parametrize("command", ["torchrun", "spawn"])
def test_workers_run_no_module_of_the_current_folder(command, planted):
    if command == "torchrun":
        line = [TOOLS / "dist_train.sh", "missing.py", "2"]
        environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        outcome = subprocess.run(line, env=environment, capture_output=True, text=True)
        assert "there is no config missing.py" in outcome.stderr
    else:
        program = "from torch.utils.data import DataLoader as D; print(list(D([1], 1, num_workers=1, "
        program += "multiprocessing_context='spawn')))"
        leave = "import mm_vitbackbones.search_path as s; s.leave_current_folder(); "
        outcome = python("-c", leave + program)
        assert "tensor([1])" in outcome.stdout, outcome.stderr
    assert ran(planted) == []


CHILDREN = """
from mm_vitbackbones.search_path import leave_current_folder
leave_current_folder()
import importlib, multiprocessing, subprocess, sys
if sys.version_info >= (3, 11):
    assert subprocess.run([sys.executable, "-c", "import planted"], stderr=-3).returncode == 1
child = multiprocessing.get_context("spawn").Process(target=importlib.import_module, args=["planted"])
child.start()
child.join()
assert child.exitcode == 1
"""


def test_processes_that_a_command_starts_run_no_module_of_the_current_folder(planted):
    outcome = python("-c", CHILDREN)
    assert outcome.returncode == 0, outcome.stderr
    assert "No module named 'planted'" in outcome.stderr
    assert ran(planted) == []


def test_folder_in_pythonpath_stays(planted):
    program = "import mm_vitbackbones.search_path as s; s.leave_current_folder(); import planted"
    outcome = python("-c", program, PYTHONPATH=os.pathsep.join([str(ROOT), "."]))
    assert outcome.returncode == 0, outcome.stderr
    assert ran(planted) == ["ran-planted"]


def test_folder_of_the_package_itself_becomes_the_last(monkeypatch):
    """In a source tree that is not installed, processes of the command have to find the package, too."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.setattr(sys, "path", [str(ROOT), "/somewhere/lib"])
    search_path.leave_current_folder()
    assert sys.path == ["/somewhere/lib", str(ROOT)]


# ---- modules of the user's own


@pytest.mark.parametrize(
    "config",
    [
        'custom_imports = dict(imports=["own_hooks"])\n',
        "from mmengine.config import read_base\nfrom own_hooks import Hook\nhooks = [dict(type=Hook)]\n",
        'hooks = __import__("own_hooks").HOOKS\n',
    ],
    ids=["custom_imports", "import", "code"],
)
@pytest.mark.parametrize("near", ["the user", "the config"])
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_own_module_that_is_not_found_is_one_line_with_what_to_do(config, near, tmp_path, monkeypatch):
    here, there = tmp_path / "here is", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    folder = here if near == "the user" else there
    (folder / "own_hooks.py").write_text("HOOKS = []\nclass Hook: pass\n")
    (there / "a.py").write_text("model = dict()\n" + config)
    with pytest.raises(UserError) as raised:
        read_config(there / "a.py")
    said = str(raised.value)
    assert f"module 'own_hooks' was not found, as the folder of {folder / 'own_hooks.py'} is not on" in said
    quoted = f"'{folder}'" if folder is here else str(folder)
    assert said.endswith(f"put PYTHONPATH={quoted} before the command")
    del raised
    gc.collect()  # MMEngine does not close its copy of a config that fails
    monkeypatch.syspath_prepend(str(folder))
    read_config(there / "a.py")
    del sys.modules["own_hooks"]


def test_module_that_is_nowhere_has_no_such_advice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.py").write_text('model = dict()\ncustom_imports = dict(imports=["own_nowhere"])\n')
    with pytest.raises(UserError, match="own_nowhere") as raised:
        read_config(Path("a.py"))
    assert "before the command" not in str(raised.value)
