"""What `make setup` does itself: look at the host, build mmcv with progress, skip what is done."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from helpers.paths import ROOT


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / "setup" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check_host, build_mmcv = load("check_host"), load("build_mmcv")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the files that the Makefile needs to decide what there is to do."""
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "tools" / "setup", tmp_path / "tools" / "setup")
    return tmp_path


def make(project: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    for name in ("TORCH", "PYTHON"):
        inherited.pop(name, None)
    make_program = shutil.which("make")
    assert make_program is not None
    return subprocess.run(
        [make_program, *arguments], cwd=project, env={**inherited, **env}, capture_output=True, text=True
    )


def test_missing_compiler_is_one_line_and_nothing_is_made(project):
    """With CC and CXX naming programs that do not exist, as on a machine without compilers."""
    outcome = make(project, "setup", f"PYTHON={sys.executable}", CC="no-such-cc", CXX="no-such-c++")
    assert outcome.returncode == 2
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("error:")]
    assert "a C compiler (gcc), a C++ compiler (g++)" in line
    assert "apt-get install gcc g++" in line
    assert not (project / ".venv").exists()


def test_missing_python_is_one_line(project):
    outcome = make(project, "setup", "PYTHON=no-such-python")
    assert outcome.returncode == 2
    assert "error: there is no no-such-python: apt-get install python3 python3-venv" in outcome.stderr


def test_missing_header_and_venv_name_their_packages(monkeypatch, tmp_path):
    monkeypatch.setattr(check_host.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(check_host.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(check_host, "compiles", lambda command, language, source: True)
    line = check_host.main()
    assert "Python.h" in line
    assert line.endswith("apt-get install python3-venv python3-dev")


def test_old_python_is_refused_with_the_version_needed(monkeypatch):
    monkeypatch.setattr(check_host.sys, "version_info", (3, 9, 2))
    assert "Python 3.10 or newer is needed, this is 3.9.2" in check_host.main()


def steps_to_do(project: Path, *arguments: str) -> str:
    """What make would run for the set-up."""
    outcome = make(project, "--dry-run", "setup", *arguments)
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


@pytest.fixture
def finished(project: Path) -> Path:
    """The project after a set-up, as its stamp files say: each step's recipe ends with making its own."""
    stamps = [line.split()[-1] for line in steps_to_do(project).splitlines() if "touch .venv/done/" in line]
    assert len(stamps) == 6
    for stamp in stamps:
        (project / stamp).parent.mkdir(parents=True, exist_ok=True)
        (project / stamp).touch()
    return project


def test_finished_setup_has_nothing_to_do(finished):
    assert "pip" not in steps_to_do(finished)


def test_new_pyproject_reinstalls_the_package_alone(finished):
    os.utime(finished / "pyproject.toml", (4e9, 4e9))
    todo = steps_to_do(finished)
    assert "--editable" in todo
    assert "requirements.txt" not in todo
    assert "build_mmcv" not in todo


def test_new_constraints_do_not_rebuild_mmcv(finished):
    constraints = finished / "constraints.txt"
    constraints.write_text(constraints.read_text().replace("tqdm==", "tqdm==4.0."))
    os.utime(constraints, (4e9, 4e9))
    todo = steps_to_do(finished)
    assert "requirements.txt" in todo
    assert "build_mmcv" not in todo
    assert "install torch" not in todo


def test_other_torch_rebuilds_mmcv_without_the_cached_wheel(finished):
    todo = steps_to_do(finished, "TORCH=torch==2.9.0 --index-url https://example.org/cu126")
    assert "install torch==2.9.0 --index-url https://example.org/cu126" in todo
    assert "build_mmcv.py 'mmcv==2.1.0' .venv/mmcv-build.log --no-cache" in todo


def test_torch_requirement_is_remembered(project):
    (project / ".venv").mkdir()
    (project / ".venv" / "torch-requirement").write_text("torch==2.9.0\n")
    assert "install torch==2.9.0\n" in steps_to_do(project)
    assert "install torch==2.13.0\n" in steps_to_do(project, "TORCH=torch==2.13.0")


def test_steps_of_the_build_are_counted():
    lines = ["building 'mmcv._ext' extension\n", "  [1/77] c++ -MMD x.cpp\n", "note [3/4]\n", "  [77/77] c++ y.cpp\n"]
    assert list(build_mmcv.steps(iter(lines))) == [(1, 77), (77, 77)]


def test_progress_is_a_line_each_minute(capsys):
    times = itertools.count(0.0, 5.0)
    build_mmcv.show_progress(iter([(done, 77) for done in range(1, 78)]), clock=lambda: next(times))
    lines = capsys.readouterr().out.splitlines()
    assert 5 < len(lines) < 12
    assert lines[-1].startswith("  compiling mmcv: 77/77, ")


def test_failed_build_shows_the_end_of_its_log(monkeypatch, tmp_path, capsys):
    log = tmp_path / "mmcv-build.log"

    def fail(requirement: str, log: Path, use_cache: bool) -> bool:
        log.write_text("".join(f"line {number}\n" for number in range(100)))
        return False

    monkeypatch.setattr(build_mmcv, "pip_install", fail)
    monkeypatch.setattr(build_mmcv, "cuda_problem", lambda: None)
    monkeypatch.setattr(sys, "argv", ["build_mmcv.py", "mmcv==2.1.0", str(log)])
    assert build_mmcv.main() == 1
    captured = capsys.readouterr()
    assert "about 10 minutes on 2 cores" in captured.out
    assert captured.err.splitlines()[0] == "line 80"
    assert captured.err.splitlines()[-1].endswith(f"the whole log is {log}")


def test_cached_wheel_of_another_torch_is_built_again(monkeypatch, tmp_path):
    built: list[bool] = []

    def install(requirement: str, log: Path, use_cache: bool) -> bool:
        built.append(use_cache)
        return True

    monkeypatch.setattr(build_mmcv, "pip_install", install)
    monkeypatch.setattr(build_mmcv, "ops_work", lambda: built == [True, False])
    monkeypatch.setattr(build_mmcv, "cuda_problem", lambda: None)
    monkeypatch.setattr(sys, "argv", ["build_mmcv.py", "mmcv==2.1.0", str(tmp_path / "log")])
    assert build_mmcv.main() == 0
    assert built == [True, False]


def test_ops_are_checked_before_the_rest_is_installed(monkeypatch, tmp_path):
    """While mmcv is built, what `import mmcv` needs is not there yet; that must not pass for a broken build."""
    pytest.importorskip("mmcv._ext")
    (tmp_path / "mmengine").mkdir()
    (tmp_path / "mmengine" / "__init__.py").write_text("raise ModuleNotFoundError('not installed yet')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert build_mmcv.ops_work()


def test_ops_that_do_not_load_are_found(monkeypatch, tmp_path):
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv" / "__init__.py").touch()
    (tmp_path / "mmcv" / "_ext.cpython-0.so").write_text("no library")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert not build_mmcv.ops_work()
