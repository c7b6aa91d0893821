"""The doctor: each thing that can be wrong is found by what importing does, and comes with its remedy."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from helpers.paths import ROOT
from mm_vitbackbones import __main__ as command
from mm_vitbackbones import doctor
from mm_vitbackbones.doctor import Finding, Installation
from mm_vitbackbones.mmcv_ops.lite import State

HEALTHY = {
    "torch": "2.6.0",
    "numpy": "2.4.6",
    "mmengine": "0.10.7",
    "cv2": "4.11.0",
    "mmcv": "2.1.0",
    "mmdet": "3.3.0",
    "mmseg": "1.2.2",
    "mm_vitbackbones": "0.1.0",
}


HISTORY = type("HistoryBuffer", (), {})


def fake_torch(
    version: str = "2.6.0",
    cuda: bool = False,
    safe: tuple[type, ...] = (HISTORY,),
    capability: tuple[int, int] = (9, 0),
    hip: str | None = None,
) -> Any:
    array = SimpleNamespace(numpy=lambda: None)
    return SimpleNamespace(
        __version__=version,
        version=SimpleNamespace(hip=hip),
        zeros=lambda size: array,
        cuda=SimpleNamespace(
            is_available=lambda: cuda,
            get_device_capability=lambda: capability,
            get_device_name=lambda: "Card of a test",
        ),
        serialization=SimpleNamespace(get_safe_globals=lambda: list(safe)),
    )


def fake_ops(cuda: str = "not available") -> Any:
    return SimpleNamespace(get_compiling_cuda_version=lambda: cuda)


def installation(
    operators: State = State.COMPILED, writers: tuple[str, ...] = ("mmcv",), **changes: Any
) -> Installation:
    """A healthy installation in which some modules (``mmdet__models`` for mmdet.models) are others, raise, or, where
    None is given, are not there."""
    changed = {name.replace("__", "."): value for name, value in changes.items()}

    def load(name: str) -> ModuleType:
        root = name.partition(".")[0]
        for known in (name, root):
            if known in changed and changed[known] is None:
                raise ModuleNotFoundError(f"No module named {known!r}", name=known)
        value = changed.get(name)
        if isinstance(value, Exception):
            raise value
        if value is not None:
            return value
        if name == "torch":
            return fake_torch()
        if name == "mmcv.ops":
            return fake_ops()
        module = ModuleType(name)
        module.__version__ = HEALTHY.get(root, "1.0")  # type: ignore[attr-defined]
        return module

    return Installation(load, operators, writers)


def findings(level: str, **changes: Any) -> list[Finding]:
    return [finding for finding in doctor.examine(installation(**changes)) if finding.level == level]


def missing(name: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_healthy_installation_has_nothing_to_report():
    assert doctor.examine(installation()) == []


GATE = "MMCV==2.2.0 is used but incompatible. Please install mmcv>=2.0.0rc4."

BROKEN: dict[str, tuple[dict[str, Any], str, str]] = {
    "torch absent": ({"torch": None}, "torch is not installed", "pip install torch"),
    "mmengine absent": ({"mmengine": None}, "mmengine is not installed", "pip install mmengine"),
    "mmcv absent, mmdet there": (
        {"mmcv": None, "mmdet": missing("mmcv")},
        "mmcv is missing; mmdet",
        "pip install --no-deps mmcv-lite==2.1.0",
    ),
    "mmcv-lite": ({"mmcv__ops": missing("mmcv._ext")}, "no operators", "mm_vitbackbones ops --install"),
    "mmcv-lite, compiled": ({"mmcv__ops": missing("mmcv._ext")}, "no operators", "MMCV_WITH_OPS=1"),
    "mmcv without ops folder": (
        {"mmcv__ops": missing("mmcv.ops")},
        "no folder ops",
        "pip uninstall -y mmcv mmcv-lite && pip install --no-deps mmcv-lite==2.1.0 && python -m mm_vitbackbones ops",
    ),
    "ops of another torch": (
        {"mmcv__ops": ImportError("/env/mmcv/_ext.cpython-311-x86_64-linux-gnu.so: undefined symbol: _ZN3c10")},
        "built for another torch",
        "--no-cache-dir",
    ),
    "ops of another torch, plain": (
        {"mmcv__ops": ImportError("libtorch.so.2: cannot open shared object file: No such file or directory")},
        "built for another torch",
        "pip uninstall -y mmcv mmcv-lite && pip install --no-deps mmcv-lite==2.1.0",
    ),
    "mmdet's gate": ({"mmdet": AssertionError(GATE)}, "mmdet refuses to work with mmcv 2.2.0", "mmcv==2.1.0"),
    "mmseg's gate": ({"mmseg": AssertionError(GATE)}, "mmseg refuses to work with mmcv 2.2.0", "mmcv==2.1.0"),
    "mmengine's gate": (
        {"mmdet": AssertionError("MMEngine==1.0.0 is used but incompatible. Please install mmengine<1.0.0.")},
        "mmdet refuses to work with mmengine 1.0.0",
        "pip install mmengine==",
    ),
    "no libGL": (
        {"cv2": ImportError("libGL.so.1: cannot open shared object file: No such file or directory")},
        "libGL.so.1",
        "opencv-python-headless",
    ),
    "no OpenCV": ({"cv2": None}, "cv2 is not installed", "pip install opencv-python-headless"),
    "pkg_resources wanted": ({"mmcv": missing("pkg_resources")}, "setuptools", "pip install 'setuptools<81'"),
    "numpy of another ABI": (
        {"mmdet__evaluation": ValueError("numpy.dtype size changed, may indicate binary incompatibility")},
        "compiled for another numpy than 2.4.6",
        "numpy<2",
    ),
    "ftfy": ({"mmseg__models": missing("ftfy"), "ftfy": None}, "ftfy is missing; mmseg", "pip install ftfy"),
    "prettytable": ({"mmseg__evaluation": missing("prettytable")}, "prettytable is missing", "pip install prettytable"),
    "torchvision of another torch": (
        {"mmseg__models": RuntimeError("operator torchvision::nms does not exist")},
        "torchvision was built for another torch",
        "pip uninstall -y torchvision",
    ),
    "anything else": (
        {"mmdet__models": SyntaxError("invalid syntax")},
        "mmdet cannot be imported: SyntaxError: invalid syntax",
        "python -c 'import mmdet, mmdet.models, mmdet.evaluation'",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_blocker_names_the_cause_and_the_remedy(case):
    changes, what, fix = BROKEN[case]
    assert any(what in finding.what and fix in finding.fix for finding in findings("blocker", **changes))


def test_all_undeclared_modules_are_named_together():
    changes = {"mmseg__models": missing("ftfy"), "ftfy": None, "regex": None}
    assert {finding.fix for finding in findings("blocker", **changes)} == {"pip install ftfy", "pip install regex"}


def test_one_cause_is_reported_once():
    cause = missing("mmcv._ext")
    found = findings("blocker", mmcv__ops=cause, mmdet__models=cause, mmseg__models=cause)
    assert [finding.what for finding in found] == ["mmcv has no operators: it is mmcv-lite, or was built without them"]


def test_cause_is_found_under_the_error_that_hides_it():
    hidden = ImportError("mmdet.models failed")
    hidden.__cause__ = missing("mmcv._ext")
    assert "no operators" in findings("blocker", mmdet__models=hidden)[0].what


def test_torch_that_cannot_talk_to_numpy_blocks():
    torch = fake_torch()

    def fail() -> None:
        raise RuntimeError("Numpy is not available")

    torch.zeros = lambda size: SimpleNamespace(numpy=fail)
    (blocker,) = findings("blocker", torch=torch)
    assert "torch 2.6.0 does not work with numpy 2.4.6" in blocker.what
    assert blocker.fix == "pip install 'numpy<2'"


def test_backbones_alone_are_no_blocker():
    changes = {"mmcv": None, "mmdet": None, "mmseg": None, "operators": State.ABSENT, "writers": ()}
    assert findings("blocker", **changes) == []
    fixes = [note.fix for note in findings("note", **changes)]
    assert fixes == ["pip install 'mm-vitbackbones[det]'", "pip install 'mm-vitbackbones[seg]'"]


@pytest.mark.parametrize("state", State)
def test_extra_that_is_named_writes_nothing_into_an_mmcv_with_operators_of_its_own(state):
    own = state in (State.COMPILED, State.FOREIGN)
    fixes = [note.fix for note in findings("note", operators=state, mmdet=None) if "mmdet" in note.what]
    assert fixes == [f"pip install 'mm-vitbackbones[det{'-without-mmcv' if own else ''}]'"]


@pytest.mark.parametrize("state", [State.COMPILED, State.PLAIN])
def test_two_packages_in_the_folder_of_mmcv_are_noted_with_both_ways_out(state):
    (note,) = doctor.examine(installation(state, ("mmcv", "mmcv-lite")))
    assert note.level == "note"
    assert note.what.startswith("mmcv and mmcv-lite have written into one folder")
    assert note.fix == doctor.FIX_MMCV
    assert note.fix.startswith("pip uninstall -y mmcv mmcv-lite && ")
    assert doctor.FIX_COMPILED in note.fix


def test_older_or_forked_package_in_the_folder_of_mmcv_goes_too():
    (note,) = doctor.examine(installation(writers=("mmcv-full", "mmcv-lite")))
    assert note.what.startswith("mmcv-full and mmcv-lite have written")
    assert note.fix == f"pip uninstall -y mmcv-full, and then: {doctor.FIX_MMCV}"


def test_packages_of_a_module_are_found_whatever_their_names_are(tmp_path, monkeypatch):
    for name in ("mmcv", "fork-of-mmcv"):
        info = tmp_path / f"{name.replace('-', '_')}-2.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.1.0\n")
        (info / "top_level.txt").write_text("mmcv\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert doctor.writers("mmcv") == ("fork-of-mmcv", "mmcv")
    assert doctor.writers("mmdet") == ()


def test_setuptools_without_pkg_resources_is_a_note_while_all_imports_work():
    (note,) = findings("note", pkg_resources=None)
    assert "setuptools" in note.what
    assert note.fix == "pip install 'setuptools<81'"


def test_setuptools_note_gives_way_to_the_blocker_of_the_same_cause():
    changes = {"pkg_resources": None, "mmcv": missing("pkg_resources")}
    assert findings("note", **changes) == []
    assert len(findings("blocker", **changes)) == 1


@pytest.mark.parametrize(("version", "noted"), [("2.5.1", False), ("2.6.0", True), ("2.13.0+cpu", True)])
def test_resume_is_noted_since_torch_2_6(version, noted):
    notes = [note.what for note in findings("note", torch=fake_torch(version, safe=())) if "resume" in note.what]
    assert [("cannot resume" in what, "handled by this package" in what) for what in notes] == (
        [(True, True)] if noted else []
    )


def test_mmengine_that_registers_its_classes_can_resume():
    assert doctor.examine(installation(torch=fake_torch("2.6.0", safe=(HISTORY,)))) == []


@pytest.mark.parametrize(
    ("version", "unsafe"), [("2.1.2", True), ("2.5.1+cu124", True), ("2.6.0", False), ("2.13.0+cpu", False)]
)
def test_unsafe_unpickler_is_noted_before_torch_2_6(version, unsafe):
    notes = findings("note", torch=fake_torch(version))
    said = [(note.what, note.fix) for note in notes if "run code" in note.what]
    assert [what.startswith(f"torch {version} ") for what, _ in said] == ([True] if unsafe else [])
    assert all("torch>=2.6" in fix and "MMCV_WITH_OPS=1" in fix for _, fix in said)


def test_plain_operators_are_not_built_again_for_another_torch():
    (note,) = findings("note", operators=State.PLAIN, torch=fake_torch("2.5.1"))
    assert note.fix == "pip install 'torch>=2.6'"


@pytest.mark.parametrize(
    ("gpu", "compiled", "noted"),
    [(True, "not available", True), (True, "12.6", False), (False, "not available", False)],
)
def test_ops_without_cuda_are_noted_where_there_is_a_gpu(gpu, compiled, noted):
    notes = findings("note", torch=fake_torch(cuda=gpu), mmcv__ops=fake_ops(compiled))
    assert [note.fix.startswith("FORCE_CUDA=1 CFLAGS=") for note in notes] == ([True] if noted else [])
    assert all(doctor.FIX_LITE in note.fix for note in notes)


@pytest.mark.parametrize(("capability", "noted"), [((9, 0), False), ((8, 0), True), ((7, 5), False)])
def test_kernels_that_another_card_could_run_are_noted(monkeypatch, capability, noted):
    monkeypatch.delenv("MM_VITBACKBONES_KERNELS", raising=False)
    torch = fake_torch(cuda=True, capability=capability)
    notes = findings("note", torch=torch, mmcv__ops=fake_ops("12.6"))
    assert [note.what.startswith("Card of a test runs PyTorch's operators") for note in notes] == [True] * noted
    assert all("MM_VITBACKBONES_KERNELS=1 " in note.fix for note in notes)
    for choice in "01":
        monkeypatch.setenv("MM_VITBACKBONES_KERNELS", choice)
        assert not findings("note", torch=torch, mmcv__ops=fake_ops("12.6"))
    amd = fake_torch(cuda=True, capability=(9, 4), hip="7.0")
    (note,) = findings("note", torch=amd, mmcv__ops=fake_ops("12.6"))
    assert (note.what.split(" are for ")[1], note.fix) == ("NVIDIA's GPUs", "unset MM_VITBACKBONES_KERNELS")
    monkeypatch.delenv("MM_VITBACKBONES_KERNELS")
    assert not findings("note", torch=amd, mmcv__ops=fake_ops("12.6"))
    monkeypatch.setenv("MM_VITBACKBONES_KERNELS", "all")
    (blocker,) = findings("blocker", torch=torch, mmcv__ops=fake_ops("12.6"))
    assert blocker.what.startswith("the environment variable MM_VITBACKBONES_KERNELS is 'all': give 1 ")


@pytest.mark.parametrize("state", [State.MISSING, State.PLAIN])
def test_plain_operators_need_no_build_for_cuda(state):
    notes = findings("note", operators=state, torch=fake_torch(cuda=True), mmcv__ops=fake_ops())
    assert not any("CUDA" in note.what for note in notes)


def test_mmcv_lite_is_a_note_whose_fix_writes_the_operators():
    (note,) = doctor.examine(installation(State.MISSING))
    assert note.level == "note"
    assert note.fix == "python -m mm_vitbackbones ops --install"
    assert doctor.examine(installation(State.PLAIN)) == []


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (State.COMPILED, "compiled, CUDA not available"),
        (State.PLAIN, "plain PyTorch, in every program"),
        (State.MISSING, "plain PyTorch, in the commands of this package"),
    ],
)
def test_versions_say_which_operators_there_are(state, words):
    assert dict(doctor.versions(installation(state)))["mmcv.ops"] == words


def test_report_lists_versions_then_blockers_then_notes():
    broken = installation(mmdet=None, mmseg=AssertionError(GATE))
    lines = list(doctor.report(broken, doctor.examine(broken)))
    versions = dict(line.split(maxsplit=1) for line in lines[: lines.index("")])
    assert versions["torch"] == "2.6.0"
    assert versions["mmcv.ops"] == "compiled, CUDA not available"
    assert versions["mmdet"] == "not installed"
    assert versions["mmseg"] == "cannot be imported"
    rest = lines[lines.index("") + 1 :]
    assert rest[0] == "blocker: mmseg refuses to work with mmcv 2.2.0"
    assert rest[1] == f"    fix: {doctor.FIX_MMCV}"
    assert rest[2].startswith("note: mmdet is not installed")
    assert rest[-1] == "1 blocker."


def test_package_whose_part_fails_keeps_its_version():
    versions = dict(doctor.versions(installation(mmseg__models=missing("ftfy"))))
    assert versions["mmseg"] == "1.2.2 (fails)"


@pytest.mark.parametrize(("changes", "code"), [({}, 0), ({"mmdet": None}, 0), ({"mmdet": AssertionError(GATE)}, 1)])
def test_command_exits_with_1_on_a_blocker_alone(changes, code, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "Installation", lambda: installation(**changes))
    assert command.main(["doctor"]) == code
    assert ("blocker:" in capsys.readouterr().out) == bool(code)


@pytest.mark.parametrize("argv", [[], ["help"]])
def test_help_names_the_doctor(argv, capsys):
    assert command.main(argv) == 0
    assert "doctor" in capsys.readouterr().out


def test_unknown_command_exits_with_2(capsys):
    assert command.main(["heal"]) == 2
    assert "heal" in capsys.readouterr().err


@pytest.fixture
def run_doctor(tmp_path: Path) -> Callable[[dict[str, str]], subprocess.CompletedProcess[str]]:
    """Run the command in a process in which the given modules hide those that are installed."""

    def run(modules: dict[str, str]) -> subprocess.CompletedProcess[str]:
        for path, text in modules.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        root = ROOT
        env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
        return subprocess.run(
            [sys.executable, "-m", "mm_vitbackbones", "doctor"], env=env, capture_output=True, text=True, cwd=tmp_path
        )

    return run


def test_doctor_in_a_process_of_its_own(run_doctor):
    """A fork of mmcv whose distribution has any name, without ops, and an mmdet that refuses it."""
    gate = "import mmcv\nassert False, f'MMCV=={mmcv.__version__} is used but incompatible. Please install another.'\n"
    outcome = run_doctor(
        {
            "mmcv/__init__.py": "__version__ = '2.2.0'\n",
            "mmcv/ops/__init__.py": "from mmcv import _ext\nimport mmcv._ext\n",
            "mmdet/__init__.py": gate,
            "mmseg/__init__.py": gate,
        }
    )
    assert outcome.returncode == 1, outcome.stdout + outcome.stderr
    assert "mmcv             2.2.0" in outcome.stdout
    assert "blocker: mmdet refuses to work with mmcv 2.2.0" in outcome.stdout
    assert "blocker: mmseg refuses to work with mmcv 2.2.0" in outcome.stdout
    assert outcome.stderr == ""


def test_doctor_of_this_environment_finds_no_blocker(run_doctor):
    outcome = run_doctor({})
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "Ready: no blockers." in outcome.stdout


@pytest.mark.parametrize("utf8", ["0", "1"])
def test_doctor_works_without_a_locale(utf8):
    """An error may have letters that the terminal does not have."""
    program = (
        "from mm_vitbackbones import doctor\n"
        "def load(name): raise ImportError('\\u00fc\\u6f22 is broken')\n"
        "doctor.Installation = lambda kind=doctor.Installation: kind(load)\n"
        "raise SystemExit(doctor.main())"
    )
    locale = {"LC_ALL": "C", "PYTHONUTF8": utf8, "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    outcome = subprocess.run([sys.executable, "-c", program], env={**os.environ, **locale}, capture_output=True)
    assert outcome.returncode == 1, outcome.stderr
    assert b"is broken" in outcome.stdout
    assert outcome.stdout.endswith(b" blockers.\n")
