"""What `make setup` does itself: look at the host, build mmcv with progress, skip what is done."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from helpers.lite import needs_compiled_mmcv
from helpers.paths import ROOT
from mm_vitbackbones import doctor


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / "setup" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check_host, build_mmcv, make_hashes = load("check_host"), load("build_mmcv"), load("make_hashes")
leave_mmcv = load("leave_mmcv")
pinned = build_mmcv.pinned

COMPILED = f"_ext{EXTENSION_SUFFIXES[0]}"
"""The file of mmcv's compiled operators."""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the files that the Makefile needs to decide what there is to do."""
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "tools" / "setup", tmp_path / "tools" / "setup")
    return tmp_path


def make(project: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    for name in ("TORCH", "PYTHON", "MMCV"):
        inherited.pop(name, None)
    make_program = shutil.which("make")
    assert make_program is not None
    return subprocess.run(
        [make_program, *arguments], cwd=project, env={**inherited, **env}, capture_output=True, text=True
    )


def test_missing_compiler_is_one_line_and_nothing_is_made(project):
    """With CC and CXX naming programs that do not exist, as on a machine without compilers."""
    no_compilers = dict(CC="no-such-cc", CXX="no-such-c++")
    outcome = make(project, "setup", "MMCV=compiled", f"PYTHON={sys.executable}", **no_compilers)
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
    line = check_host.main(["--compiler"])
    assert "Python.h" in line
    assert line.endswith("apt-get install python3-venv python3-dev")
    assert check_host.main([]).endswith("missing: Python's venv module. Install with: apt-get install python3-venv")


def test_neither_compiler_nor_headers_are_asked_for_where_nothing_is_built(project, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {"CC": "no-such-cc", "CXX": "no-such-c++", "PATH": str(empty)}
    check = [sys.executable, "tools/setup/check_host.py"]
    assert subprocess.run(check, cwd=project, env=environment).returncode == 0
    assert subprocess.run([*check, "--compiler"], cwd=project, env=environment, capture_output=True).returncode == 1
    todo = steps_to_do(project)
    assert todo.count("tools/setup/check_host.py") == 2
    assert "--compiler" not in todo


def test_old_python_is_refused_with_the_version_needed(monkeypatch):
    monkeypatch.setattr(check_host.sys, "version_info", (3, 9, 2))
    assert "Python 3.10 or newer is needed, this is 3.9.2" in check_host.main([])


def steps_to_do(project: Path, *arguments: str) -> str:
    """What make would run for the set-up."""
    outcome = make(project, "--dry-run", "setup", *arguments)
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


def finish(project: Path, *arguments: str) -> Path:
    """The project after a set-up, as its files say: each step's recipe ends with making its own, all at one time."""
    todo = steps_to_do(project, *arguments)
    stamps = re.findall(r"touch (.venv/done/\S+)", todo)
    assert len(stamps) == 7
    for stamp in stamps:
        (project / stamp).parent.mkdir(parents=True, exist_ok=True)
        (project / stamp).touch()
    for content, file in re.findall(r"echo '(\w+)' > (\S+)", todo):
        (project / file).write_text(f"{content}\n")
    return project


@pytest.fixture(params=["MMCV=lite", "MMCV=compiled"])
def finished(request: pytest.FixtureRequest, project: Path) -> Path:
    return finish(project, request.param)


def test_finished_setup_has_nothing_to_do(finished):
    assert "pip" not in steps_to_do(finished)


def test_new_pyproject_reinstalls_the_package_alone(finished):
    os.utime(finished / "pyproject.toml", (4e9, 4e9))
    todo = steps_to_do(finished)
    assert "--editable" in todo
    assert "pinned.py" not in todo
    assert "build_mmcv" not in todo


def test_new_constraints_do_not_rebuild_mmcv(finished):
    constraints = finished / "constraints.txt"
    constraints.write_text(constraints.read_text().replace("tqdm==", "tqdm==4.0."))
    os.utime(constraints, (4e9, 4e9))
    todo = steps_to_do(finished)
    assert "pinned.py needs rest" in todo
    assert "build_mmcv" not in todo
    assert "leave_mmcv" not in todo
    assert "pinned.py torch" not in todo


OTHER_TORCH = "TORCH=torch==2.9.0 --index-url https://example.org/cu126"


def test_other_torch_rebuilds_mmcv_without_the_cached_wheel(project):
    todo = steps_to_do(finish(project, "MMCV=compiled"), OTHER_TORCH)
    assert "install torch==2.9.0 --index-url https://example.org/cu126" in todo
    assert "build_mmcv.py 'mmcv==2.1.0' .venv/mmcv-build.log --no-cache" in todo


def test_other_torch_leaves_mmcv_lite_as_it_is(project):
    todo = steps_to_do(finish(project), OTHER_TORCH)
    assert "install torch==2.9.0" in todo
    assert "mmcv-lite" not in todo
    assert "build_mmcv" not in todo


def test_torch_requirement_is_remembered(project):
    (project / ".venv").mkdir()
    (project / ".venv" / "torch-requirement").write_text("torch==2.9.0\n")
    assert "install torch==2.9.0\n" in steps_to_do(project)
    pinned_again = steps_to_do(project, "TORCH=torch==2.13.0")
    assert "pinned.py torch --as-found\n" in pinned_again
    assert "install torch" not in pinned_again


# ---- which mmcv


def ways(todo: str) -> dict[str, bool]:
    """Which kinds of mmcv a set-up installs."""
    return {"lite": "pinned.py lite\n" in todo, "compiled": "build_mmcv.py 'mmcv==2.1.0'" in todo}


def test_mmcv_lite_with_the_operators_of_this_package_is_the_default(project):
    todo = steps_to_do(project)
    assert ways(todo) == {"lite": True, "compiled": False}
    assert "pinned.py build" not in todo
    order = ["pinned.py lite", "--editable .", "mm_vitbackbones ops --install", "mm_vitbackbones doctor"]
    assert sorted(order, key=todo.index) == order


def test_mmcv_is_built_where_it_is_asked_for(project):
    todo = steps_to_do(project, "MMCV=compiled")
    assert ways(todo) == {"lite": False, "compiled": True}
    assert "ops --install" not in todo
    order = ["check_host.py --compiler", "-m venv", "pinned.py build", "build_mmcv.py", "--editable .", "doctor"]
    assert sorted(order, key=todo.index) == order


@pytest.mark.parametrize(("kind", "other"), [("lite", "compiled"), ("compiled", "lite")])
def test_choice_of_mmcv_holds_until_another_one(kind, other, project):
    finish(project, f"MMCV={kind}")
    assert ways(steps_to_do(project)) == {kind: False, other: False}
    todo = steps_to_do(project, f"MMCV={other}")
    assert ways(todo) == {kind: False, other: True}
    assert todo.index(f"leave_mmcv.py --for '{other}'") > todo.index(f"echo '{other}' > .venv/mmcv-choice")
    assert "mm_vitbackbones doctor" in todo
    assert "pinned.py torch" not in todo


@pytest.mark.parametrize(("kind", "other"), [("lite", "compiled"), ("compiled", "lite")])
def test_broken_change_of_mmcv_goes_on_in_the_next_run_and_can_be_taken_back(kind, other, project):
    """After the other mmcv has been uninstalled."""
    finish(project, f"MMCV={kind}")
    todo = steps_to_do(project, f"MMCV={other}")
    changes = todo[todo.index("echo '") : todo.index("\n", todo.index("rm -f"))]
    subprocess.run(["sh", "-ec", changes], cwd=project, check=True)
    assert ways(steps_to_do(project)) == {kind: False, other: True}
    assert ways(steps_to_do(project, f"MMCV={kind}")) == {kind: True, other: False}


def test_environment_from_before_the_choice_keeps_its_compiled_mmcv(project):
    finish(project, "MMCV=compiled")
    (project / ".venv" / "mmcv-choice").unlink()
    assert "pip" not in steps_to_do(project)
    todo = steps_to_do(project, OTHER_TORCH)
    assert ways(todo) == {"lite": False, "compiled": True}
    kept = next(line for line in todo.splitlines() if "echo compiled" in line)
    subprocess.run(["sh", "-ec", kept], cwd=project, check=True)
    assert (project / ".venv" / "mmcv-choice").read_text() == "compiled\n"


def test_another_environment_makes_its_own_choice(project):
    finish(project, "MMCV=lite")
    todo = steps_to_do(project, "MMCV=compiled", "VENV=.venv-compiled")
    assert ways(todo) == {"lite": False, "compiled": True}
    assert "pinned.py torch" in todo
    assert re.search(r"\.venv/", todo) is None
    assert "pip" not in steps_to_do(project)


@pytest.mark.parametrize("value", ["full", "lite compiled", ""])
def test_unknown_kind_of_mmcv_is_one_line(value, project):
    outcome = make(project, "setup", f"MMCV={value}")
    assert outcome.returncode == 2
    assert outcome.stderr.endswith(f'*** MMCV is lite or compiled, not "{value}".  Stop.\n')
    assert outcome.stdout == ""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which pip, stood in for by the test, keeps mmcv and mmcv-lite; Python finds no other mmcv."""
    folder = tmp_path / "site-packages"
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(leave_mmcv.importlib.metadata, "distribution", lambda name: known(folder, name))
    monkeypatch.setattr(leave_mmcv, "pip_uninstall", lambda names: uninstall(folder, names))
    monkeypatch.setattr(leave_mmcv.lite.importlib.util, "find_spec", lambda name: spec_of(folder))
    return folder


def known(folder: Path, name: str) -> None:
    if not (folder / f"{name}.dist-info").exists():
        raise importlib.metadata.PackageNotFoundError(name)


def spec_of(folder: Path) -> object:
    file = folder / "mmcv" / "__init__.py"
    origin = str(file) if file.exists() else None
    there = file.parent.is_dir()
    return SimpleNamespace(origin=origin, submodule_search_locations=[str(file.parent)]) if there else None


FILES = {"mmcv-lite": ("__init__.py", "ops/__init__.py"), "mmcv": ("__init__.py", "ops/__init__.py", COMPILED)}


def put(folder: Path, name: str) -> None:
    (folder / f"{name}.dist-info").mkdir(parents=True)
    for file in FILES[name]:
        (folder / "mmcv" / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / "mmcv" / file).touch()


def uninstall(folder: Path, names: set[str]) -> str:
    """As pip does it: what a package lists goes, and the folders that are empty then."""
    for name in names:
        (folder / f"{name}.dist-info").rmdir()
        for file in FILES[name]:
            (folder / "mmcv" / file).unlink(missing_ok=True)
    for path in (folder / "mmcv" / "ops", folder / "mmcv"):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    return ""


def test_nothing_of_mmcv_lite_stays_when_mmcv_comes(packages):
    put(packages, "mmcv-lite")
    leave_mmcv.lite.install()
    assert leave_mmcv.main(["--for", "lite"]) == 0
    assert (packages / "mmcv" / "_ext.py").exists()
    assert leave_mmcv.main(["--for", "compiled"]) == 0
    assert list(packages.iterdir()) == []


def test_nothing_of_mmcv_stays_when_mmcv_lite_comes(packages):
    put(packages, "mmcv")
    assert leave_mmcv.main(["--for", "compiled"]) == 0
    assert (packages / "mmcv" / COMPILED).exists()
    assert leave_mmcv.main(["--for", "lite"]) == 0
    assert list(packages.iterdir()) == []


@pytest.mark.parametrize("kind", ["lite", "compiled"])
def test_two_packages_of_one_folder_are_both_installed_again(kind, packages):
    put(packages, "mmcv-lite")
    leave_mmcv.lite.install()
    put(packages, "mmcv")
    assert leave_mmcv.main(["--for", kind]) == 0
    assert list(packages.iterdir()) == []


def test_file_that_outlived_its_mmcv_lite_goes_before_mmcv_comes(packages):
    put(packages, "mmcv-lite")
    leave_mmcv.lite.install()
    uninstall(packages, {"mmcv-lite"})
    assert (packages / "mmcv" / "_ext.py").exists()
    assert leave_mmcv.main(["--for", "compiled"]) == 0
    assert list(packages.iterdir()) == []


def test_environment_without_mmcv_has_nothing_to_leave(packages):
    packages.mkdir()
    assert [leave_mmcv.main(["--for", kind]) for kind in ("lite", "compiled")] == [0, 0]


@pytest.mark.parametrize("file", ["_ext.py", "ops/mine.py"])
def test_file_of_the_user_in_mmcv_stays_and_is_named(file, packages, capsys):
    put(packages, "mmcv-lite")
    (packages / "mmcv" / file).write_text("nms = None\n")
    assert leave_mmcv.main(["--for", "compiled"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {packages / 'mmcv' / file} ")
    assert (packages / "mmcv" / file).read_text() == "nms = None\n"


def test_pip_that_cannot_uninstall_ends_the_set_up(packages, monkeypatch, capsys):
    put(packages, "mmcv")
    monkeypatch.setattr(leave_mmcv, "pip_uninstall", lambda names: f"cannot uninstall {sorted(names)}")
    assert leave_mmcv.main(["--for", "lite"]) == 1
    assert capsys.readouterr().err == "error: cannot uninstall ['mmcv']\n"


# ---- the build


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
    assert captured.err.splitlines()[-1].endswith(f"the whole log is {log}; make setup MMCV=lite builds nothing")


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


def test_operators_are_optimised_wherever_it_says_how_to_build_them():
    """setuptools takes CFLAGS in place of Python's own flags: without an -O in it, nothing is optimised."""
    flags = build_mmcv.FLAGS["CFLAGS"]
    assert flags.startswith("-O3 -DNDEBUG ")
    assert f"CFLAGS='{flags}' MMCV_WITH_OPS=1 " in doctor.FIX_COMPILED
    assert f'CFLAGS="{flags}" MMCV_WITH_OPS=1 ' in (ROOT / "docs" / "mmcv.md").read_text(encoding="utf-8")


@needs_compiled_mmcv
def test_ops_are_checked_before_the_rest_is_installed(monkeypatch, tmp_path):
    """While mmcv is built, what `import mmcv` needs is not there yet; that must not pass for a broken build."""
    (tmp_path / "mmengine").mkdir()
    (tmp_path / "mmengine" / "__init__.py").write_text("raise ModuleNotFoundError('not installed yet')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert build_mmcv.ops_work()


@pytest.mark.parametrize("file", ["_ext.cpython-0.so", "_ext.py"])
def test_ops_that_do_not_load_are_found(file, monkeypatch, tmp_path):
    """A module in Python is none that was built."""
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv" / "__init__.py").touch()
    (tmp_path / "mmcv" / file).write_text("library = None")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert not build_mmcv.ops_work()


# ---- hashes


def test_every_package_that_is_downloaded_is_checked_by_a_hash():
    """The package itself is installed from here, and TORCH=... is the user's own."""
    steps = (ROOT / "Makefile").read_text("utf-8").splitlines()
    installs = [line.strip() for line in steps if " install " in line and not line.strip().startswith(("@echo", "#"))]
    assert installs[1:] == [
        "$(PY) -m pip --disable-pip-version-check install $(TORCH)",
        "$(PIP) install --no-deps --no-build-isolation --editable .",
    ]
    assert "apt-get" in installs[0]


def test_every_version_has_the_hashes_of_its_files():
    for name, section in pinned.sections(pinned.CONSTRAINTS.read_text("utf-8")).items():
        assert section, name
        for requirement in "\n".join(section.values()).splitlines():
            assert re.fullmatch(r"[a-z0-9-]+==[\w.]+(; [^-]+?)?( +--hash=sha256:[0-9a-f]{64})+", requirement), (
                requirement
            )


def test_sections_are_the_whole_file():
    text = pinned.CONSTRAINTS.read_text("utf-8")
    there = [line for section in pinned.sections(text).values() for pin in section.values() for line in pin.split("\n")]
    assert len(there) == len(re.findall(r"^[a-z0-9-]+==", text, re.MULTILINE)) > 100
    of_makefile = re.findall(r"\$\(PINNED\) ([a-z ]+)", (ROOT / "Makefile").read_text("utf-8"))
    assert {name for names in of_makefile for name in names.split()} | {"mmcv"} == pinned.sections(text).keys()


def wheel(folder: Path, name: str, content: str = "") -> Path:
    """A wheel of one module, version 1.0."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return path


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A constraints.txt with one wheel of ours; pip has no other, and writes into a folder of this test."""
    digest = hashlib.sha256(wheel(tmp_path, "ours").read_bytes()).hexdigest()
    text = f"# rest: one package.\nours==1.0 \\\n    --hash=sha256:{'0' * 64} \\\n    --hash=sha256:{digest}\n"
    (tmp_path / "constraints.txt").write_text(text)
    monkeypatch.setattr(pinned, "CONSTRAINTS", tmp_path / "constraints.txt")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return tmp_path


@pytest.mark.parametrize("how", [[], ["--as-found"]])
def test_package_with_its_hash_is_installed(how, offline, capfd):
    assert pinned.main(["rest", "--target", str(offline / "there"), *how]) == 0, capfd.readouterr().err
    assert (offline / "there" / "ours.py").is_file()


@pytest.mark.parametrize("how", [[], ["--as-found"]])
def test_changed_package_is_refused_in_one_line(how, offline, capfd):
    got = hashlib.sha256(wheel(offline, "ours", "print('changed')").read_bytes()).hexdigest()
    assert pinned.main(["rest", "--target", str(offline / "there"), *how]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ours==1.0 is not the file that constraints.txt knows, and was not installed: file:")
    assert f"ours-1.0-py3-none-any.whl has the SHA-256 {got}; if you changed its version, make its hashes" in line
    assert not (offline / "there").exists()


def test_package_without_a_hash_is_refused(offline, capfd):
    (offline / "constraints.txt").write_text("# rest: one package.\nours==1.0\n")
    assert pinned.main(["rest", "--target", str(offline / "there")]) == 1
    said = capfd.readouterr().err
    assert "Hashes are required" in said
    assert said.splitlines()[-1] == "error: pip could not install what constraints.txt lists: see above"


def test_changed_source_of_mmcv_is_refused_in_one_line(offline, monkeypatch, capsys):
    """pip gets a wheel here, whose hash it compares in the same way."""
    monkeypatch.setattr(build_mmcv, "cuda_problem", lambda: None)
    wheel(offline, "ours", "changed")
    monkeypatch.setattr(sys, "argv", ["build_mmcv.py", "ours==1.0", str(offline / "log")])
    assert build_mmcv.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ours==1.0 is not the file that constraints.txt knows")


def test_another_build_of_torch_is_refused_with_what_to_type():
    said = (
        "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. x\n    torch==2.13.0 from http://a/b"
    )
    line = pinned.wrong_hash(f"{said} (from -r c):\n        Expected sha256 12\n             Got        34\n")
    assert "http://a/b has the SHA-256 34" in line
    assert line.endswith('make setup TORCH="torch==... --index-url ..."')


@pytest.mark.parametrize(("option", "installed"), [("--wanted-by", {"cuda"}), ("--unless-wanted-by", {"cpu"})])
def test_packages_of_a_build_of_torch_come_with_it_alone(option, installed, monkeypatch, capsys):
    asked = {"cuda": ["filelock", 'triton==3.7.1; python_version >= "3"'], "cpu": ['triton; extra == "x"']}
    done = set()
    for build, requirements in asked.items():
        monkeypatch.setattr(pinned.importlib.metadata, "requires", lambda name, found=requirements: found)
        monkeypatch.setattr(pinned, "install", lambda requirements, options, build=build: done.add(build) or "")
        assert pinned.main(["cuda", option, "torch"]) == 0
    assert done == installed


def test_new_hashes_take_the_place_of_the_old_ones(monkeypatch, tmp_path):
    text = (
        '# Head.\n\n# rest: a.\nours==1.0; python_version < "3" \\\n    --hash=sha256:12\n'
        "b==2 \\\n    --hash=sha256:34\n\n# peers: c.\nb==3\n"
    )
    looked_up = []
    digest = {one: f"sha256:{number:064}" for number, one in enumerate(["ours==1.0", "b==2", "b==3"])}

    def look_up(pins):
        looked_up.append(pins)
        return {pin.split(";")[0]: {digest[pin.split(";")[0]]} for pin in pins}

    monkeypatch.setattr(make_hashes, "look_up", look_up)
    other = wheel(tmp_path, "ours").rename(tmp_path / "ours-1.0+cpu-py3-none-any.whl")
    also = f"sha256:{hashlib.sha256(other.read_bytes()).hexdigest()}"
    written = make_hashes.with_hashes(text, [other])
    assert looked_up == [['ours==1.0; python_version < "3"', "b==2"], ["b==3"]]
    ours = "".join(f" \\\n    --hash={one}" for one in sorted([digest["ours==1.0"], also]))
    assert written == (
        f'# Head.\n\n# rest: a.\nours==1.0; python_version < "3"{ours}\nb==2 \\\n    --hash={digest["b==2"]}\n'
        f"\n# peers: c.\nb==3 \\\n    --hash={digest['b==3']}\n"
    )
    assert make_hashes.with_hashes(written, [other]) == written


@pytest.mark.parametrize("variables", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_set_up_works_without_a_locale(variables, project):
    """A log of a compiler may have any letters, and so may a path."""
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'tools/setup'); import build_mmcv\n"
        "build_mmcv.pinned.find = lambda name: name\n"
        "raise SystemExit(build_mmcv.pip_install('none==1 # \\u00e9\\u2018', Path('log'), True))"
    )
    (project / "mm_vitbackbones").symlink_to(ROOT / "mm_vitbackbones")
    environment = {**os.environ, **variables, "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    environment.pop("PYTHONPATH", None)
    outcome = subprocess.run([sys.executable, "-c", program], cwd=project, env=environment, capture_output=True)
    assert outcome.returncode == 0, outcome.stderr
    assert "requirement" in (project / "log").read_text("utf-8")
    assert make(project, "help", **variables).returncode == 0
    assert make(project, "setup", "--dry-run", **variables).returncode == 0
