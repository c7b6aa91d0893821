"""The module that stands for ``mmcv._ext``: its names, its errors, and where it is installed."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch

from helpers.lite import copy_of_lite
from helpers.paths import ROOT
from mm_vitbackbones import libraries, mmcv_ops
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.mmcv_ops import compiled, extension, lite


def asked_for(folder: Path) -> dict[str, set[str]]:
    """By file of mmcv/ops, the names that it asks the extension for."""
    found = {}
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "load_ext":
                found[path.stem] = set(ast.literal_eval(node.args[1]))
    return found


def test_module_has_the_names_that_mmcv_asks_for_and_no_others():
    spec = find_spec("mmcv")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs mmcv")
    wanted = asked_for(Path(spec.submodule_search_locations[0], "ops"))
    assert {operator: set(names) for operator, names in extension.FUNCTIONS.items()} == wanted
    module = extension.module()
    public = {name for name in vars(module) if not name.startswith("_")}
    assert public == set().union(*wanted.values())


def test_operator_without_a_plain_form_says_which_and_who_has_it():
    with pytest.raises(
        UserError, match=r"^nms_rotated \(mmcv.ops.nms\) .* package mmcv, with compiled operators"
    ) as info:
        extension.module().nms_rotated(torch.zeros(1, 5), torch.zeros(1), torch.zeros(1), None, None, 0.5, False)
    assert "\n" not in str(info.value)


def test_operators_are_installed_over_mmcv_lite_when_a_library_is_loaded(tmp_path):
    folder = copy_of_lite(tmp_path)
    program = (
        "import sys\n"
        "from mm_vitbackbones import libraries\n"
        "assert 'mm_vitbackbones.mmcv_ops.extension' not in sys.modules\n"
        "libraries.load('mmengine')\n"
        "assert 'mmcv' not in sys.modules\n"
        "import mmcv.ops, torch, warnings\n"
        f"assert mmcv.__file__.startswith({str(folder)!r})\n"
        "from mmcv.utils.ext_loader import check_ops_exist\n"
        "warnings.simplefilter('ignore')\n"
        "boxes = torch.tensor([[0., 0, 4, 4], [0, 0, 4, 4]])\n"
        "print(check_ops_exist(), mmcv.ops.nms(boxes, torch.tensor([.5, .6]), .5)[1].tolist())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (folder, ROOT)))}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.stdout == "True [1]\n", result.stderr


def test_extension_that_is_there_is_left_alone(mmcv):
    (mmcv / "_ext.py").write_text("nms = 'another'\n")
    libraries.load("mmengine")
    assert not extension.install()
    assert importlib.import_module("mmcv._ext").nms == "another"


def test_extension_that_is_imported_is_left_alone(mmcv, monkeypatch):
    another = ModuleType("mmcv._ext")
    monkeypatch.setitem(sys.modules, "mmcv._ext", another)
    assert not extension.install()
    assert sys.modules["mmcv._ext"] is another


def test_without_mmcv_no_operators_are_imported(monkeypatch):
    monkeypatch.setattr(lite, "find", lambda: lite.Found(lite.State.ABSENT))
    monkeypatch.setitem(sys.modules, "mm_vitbackbones.mmcv_ops.extension", None)  # it cannot be imported
    monkeypatch.delattr(mmcv_ops, "extension")
    libraries.load("mmengine")


@pytest.mark.parametrize("error", [ImportError("no"), RuntimeError("operator torchvision::nms does not exist")])
def test_torchvision_that_cannot_be_imported_is_not_used(error, monkeypatch):
    def fail(name: str) -> ModuleType:
        raise error

    monkeypatch.setattr(compiled.importlib, "import_module", fail)
    assert compiled.torchvision_operators.__wrapped__() is None
