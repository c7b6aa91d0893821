"""The package alone: pure Python, built without torch, and usable with torch and mmengine and nothing else."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import mm_vitbackbones
from helpers.paths import ROOT, recipe_files
from mm_vitbackbones.files import tracked

pytestmark = pytest.mark.xdist_group("wheel")
BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked)", name=name)

sys.meta_path.insert(0, Blocked())
"""


USERS = "configs/users_own.py"
"""A config that git does not know."""
GIT = shutil.which("git")


@functools.cache
def project_configs() -> tuple[str, ...]:
    """The recipes, their parts and their metafiles, without what a user has put among them."""
    paths = (path for path in tracked(ROOT / "configs") if path.suffix in (".py", ".yml"))
    return tuple(str(path.relative_to(ROOT)) for path in paths)


def run(program: str, *blocked: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh interpreter in which some packages cannot be imported."""
    source = BLOCK.format(names=set(blocked)) + program
    return subprocess.run(
        [sys.executable, "-c", source], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )


def test_importing_the_package_imports_nothing_else():
    outcome = run(
        "import mm_vitbackbones\n"
        "heavy = {'torch', 'numpy', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'cv2', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    assert outcome.returncode == 0, outcome.stderr


EXTRAS = ("cv2", "mmcv", "mmdet", "mmseg", "timm", "transformers", "torchvision", "safetensors", "pycocotools", "scipy")


BACKBONE_ALONE = """
from mmengine.registry import MODELS
backbone = MODELS.build(dict(type="mm_vitbackbones.PVTv2", arch="b0")).eval()
with torch.no_grad():
    levels = backbone(torch.zeros(1, 3, 32, 32))
assert [level.shape[1] for level in levels] == list(backbone.channels)
"""
ALONE = {name: f"import mm_vitbackbones.{name}" for name in ("backbones", "layers", "checkpoints")}
ALONE["a backbone that runs"] = BACKBONE_ALONE
ALONE["exporting, without onnx"] = """
import mm_vitbackbones.exporting
assert not {"onnx", "onnxscript", "onnxruntime"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def ends() -> tuple[dict[str, int], str]:
    """The statuses of the programs of ``ALONE``, each the first to import anything of ours into its process, and what
    they all say."""
    program = (
        "import json, os, torch, mmengine.model, mmengine.registry\n"
        "statuses = {}\n"
        f"for name, source in {ALONE!r}.items():\n"
        "    if os.fork() == 0:\n"
        "        exec(source)\n"
        "        raise SystemExit\n"
        "    statuses[name] = os.wait()[1]\n"
        "print(json.dumps(statuses))\n"
    )
    outcome = run(program, *EXTRAS)
    assert outcome.returncode == 0, outcome.stderr
    return json.loads(outcome.stdout.splitlines()[-1]), outcome.stderr


@pytest.mark.parametrize("name", ALONE)
def test_it_needs_torch_and_mmengine_alone(name, ends):
    statuses, said = ends
    assert statuses[name] == 0, said


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that was built from a copy of the project, offline, where neither torch nor numpy can be imported."""
    project = tmp_path_factory.mktemp("build") / "project"
    skipped = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "mm_vitbackbones", project / "mm_vitbackbones", ignore=skipped)
    for name in ("pyproject.toml", "setup.py", "model-index.yml", "README.md", "LICENSE", *project_configs()):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    if GIT:
        for command in (["init", "-q"], ["add", "-A"]):
            subprocess.run(["git", *command], cwd=project, check=True)
        (project / USERS).write_text('_base_ = "retinanet_pvt_s_coco.py"\n')
    program = (
        "import os, warnings; warnings.simplefilter('ignore')\n"
        "from setuptools import build_meta\n"
        f"os.chdir({str(project)!r}); print(build_meta.build_wheel({str(project.parent)!r}))"
    )
    outcome = run(program, "torch", "numpy", "mmengine")
    assert outcome.returncode == 0, outcome.stderr
    return next(project.parent.glob("*.whl"))


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def test_wheel_is_pure_python(wheel):
    assert wheel.name == f"mm_vitbackbones-{mm_vitbackbones.__version__}-py3-none-any.whl"


def test_wheel_holds_the_package_its_configs_and_its_licence_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "mm_vitbackbones").rglob("*.py")}
    shipped = {f"mm_vitbackbones/.mim/{name}" for name in (*project_configs(), "model-index.yml")}
    assert {name for name in names if ".dist-info/" not in name} == modules | shipped
    assert any(name.endswith("LICENSE") for name in names)


@pytest.mark.skipif(not GIT, reason="needs git, which tells the project's files from a user's")
def test_wheel_leaves_out_a_users_config(wheel):
    with zipfile.ZipFile(wheel) as archive:
        assert f"mm_vitbackbones/.mim/{USERS}" not in archive.namelist()
        assert f"mm_vitbackbones/.mim/{project_configs()[-1]}" in archive.namelist()


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel holds, and nothing else."""
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run_installed(installed: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A command of Python's in a folder, with the package from the wheel."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run([sys.executable, *command], env=environment, cwd=folder, capture_output=True, text=True)


def test_recipes_of_the_wheel_are_used_by_name_from_any_folder(installed, tmp_path):
    listed = run_installed(installed, tmp_path, "-m", "mm_vitbackbones", "configs")
    assert len(listed.stdout.splitlines()) == len(recipe_files())
    described = run_installed(installed, tmp_path, "-m", "mm_vitbackbones", "describe", "retinanet_pvt_s_coco")
    assert "PVT small" in described.stdout, described.stderr


def test_config_that_the_wheel_writes_inherits_from_the_wheels_recipes(installed, tmp_path):
    command = ("-m", "mm_vitbackbones", "config", "mask_rcnn_pvt_s_3x_coco", "--out", "own.py")
    assert run_installed(installed, tmp_path, *command).returncode == 0
    program = (
        "import sys; from mmengine.config import Config\n"
        "cfg = Config.fromfile('own.py'); assert cfg.model.backbone.arch == 'small'\n"
        "assert sys.modules['mm_vitbackbones'].__file__.startswith(sys.argv[1]), sys.modules['mm_vitbackbones']"
    )
    outcome = run_installed(installed, tmp_path, "-c", program, str(installed))
    assert outcome.returncode == 0, outcome.stderr


def test_model_index_of_the_wheel_leads_to_its_configs(installed):
    """As OpenMMLab's mim reads it."""
    yaml = pytest.importorskip("yaml")
    mim = installed / "mm_vitbackbones" / ".mim"
    metafiles = yaml.safe_load((mim / "model-index.yml").read_text())["Import"]
    models = [model for name in metafiles for model in yaml.safe_load((mim / name).read_text())["Models"]]
    assert len(models) > 90
    assert all((mim / model["Config"]).is_file() for model in models)


def test_wheel_depends_on_torch_and_mmengine_alone(metadata):
    always = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert {re.match(r"[\w-]+", line)[0] for line in always} == {"torch", "mmengine"}


LOGGERS = {"mlflow", "tensorboard", "wandb"}
"""Extras of a user's own choice, each with the package of its name. Nothing here imports them."""


def test_wheel_states_licence_and_python(metadata):
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    libraries = {"det", "seg", "det-without-mmcv", "seg-without-mmcv", "adapters", "export"}
    assert set(metadata.get_all("Provides-Extra")) == {*libraries, "peers", "test", "dev", *LOGGERS}


def wanted_by(extra: str, metadata: Message) -> set[str]:
    """The packages of an extra, and of the extras of ours in it."""
    names: set[str] = set()
    for line in metadata.get_all("Requires-Dist"):
        requirement, _, marker = line.partition(";")
        if f'extra == "{extra}"' in marker:
            inner = re.match(r"mm-vitbackbones\[(.+?)\]", requirement)
            names |= wanted_by(inner[1], metadata) if inner else {re.match(r"[\w-]+", requirement)[0]}
    return names


@pytest.mark.parametrize(("extra", "library"), [("det", "mmdet"), ("seg", "mmsegmentation")])
def test_extras_bring_mmcv_lite_or_leave_mmcv_alone(extra, library, metadata):
    alone = wanted_by(f"{extra}-without-mmcv", metadata)
    assert library in alone
    assert not any("mmcv" in name for name in alone)
    assert wanted_by(extra, metadata) == {*alone, "mmcv-lite"}


def pins(text: str) -> set[str]:
    return {line.partition("==")[0] for line in text.splitlines() if "==" in line and not line.startswith("#")}


def test_constraints_pin_everything_exactly():
    text = re.sub(r" *\\\n *--hash=sha256:[0-9a-f]{64}", "", (ROOT / "constraints.txt").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    marker = r'; (python_version (<|>=) "3\.11"|sys_platform == "linux")'
    loose = [line for line in lines if not re.fullmatch(rf"[a-z0-9-]+==[\w.]+({marker})?", line)]
    assert loose == []


def test_constraints_cover_every_extra(metadata):
    """The Makefile installs constraints.txt without asking for dependencies, so nothing may be left out of it."""
    wanted = {re.match(r"[\w-]+", line)[0].lower() for line in metadata.get_all("Requires-Dist")}
    assert wanted >= LOGGERS
    assert wanted - LOGGERS - {"mm-vitbackbones"} - pins((ROOT / "constraints.txt").read_text()) == set()


def test_adapters_and_peers_are_kept_apart():
    """With transformers installed, mmdet imports it at each start. With timm installed too, mmsegmentation imports
    torchvision, and fails if that belongs to another torch."""
    ours, _, apart = (ROOT / "constraints.txt").read_text().partition("# adapters")
    adapters, _, peers = apart.partition("# peers")
    assert {"peft", "transformers"} <= pins(adapters)
    assert pins(peers) == {"timm", "torchvision"}
    assert pins(ours).isdisjoint(pins(apart))


def test_what_a_build_imports_needs_no_installed_package():
    # setup.py imports it before anything is installed. -S leaves out site-packages, and with them an editable install.
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from mm_vitbackbones import files; files.tracked"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, capture_output=True)
