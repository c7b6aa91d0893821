"""The structure of the package: who may import whom, and what may not stand in a network."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.paths import ROOT

PACKAGE = ROOT / "mm_vitbackbones"
NETWORKS = [*(PACKAGE / "backbones").glob("*.py"), *(PACKAGE / "layers").glob("*.py")]

MAY_IMPORT = {
    "adapters": {"errors"},
    "analysis": {"canvas", "errors", "files"},
    "canvas": {"errors"},
    "errors": set(),
    "encoding": set(),
    "files": {"errors"},
    "limits": {"errors"},
    "nodes": set(),
    "printing": {"errors"},
    "progress": set(),
    "recipes": {"errors"},
    "registry": {"nodes"},
    "libraries": {"errors", "mmcv_ops", "nodes"},
    "mmcv_ops": {"errors", "files"},
    "ops": {"errors"},
    "layers": {"ops"},
    "backbones": {"adapters", "errors", "layers", "nodes", "ops", "registry"},
    "checkpoints": {"adapters", "errors", "files", "limits", "ops", "progress", "registry"},
    "heads": {"errors", "nodes", "ops", "registry"},
    "necks": {"errors", "layers", "registry"},
    "segmentors": {"registry"},
    "inspection": {"backbones", "canvas", "errors", "ops"},
    "exporting": {"backbones", "errors", "files", "mmcv_ops", "ops", "segmentors"},
    "data": {"errors", "files", "libraries", "limits", "nodes", "printing", "progress"},
    "engine": {
        "adapters",
        "backbones",
        "canvas",
        "checkpoints",
        "data",
        "errors",
        "files",
        "nodes",
        "printing",
        "recipes",
        "registry",
    },
}
"""The parts of this package that a part may import, besides itself. The rest may import all; nothing imports cli."""


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path, everywhere: bool = True) -> set[str]:
    """The modules of this package that a file imports; without ``everywhere``, when it is imported itself."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if is_module(inner) else str(node.module))
    return found


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def test_parts_import_only_what_is_below_them():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for name in imports_of(path):
            other = [*name.split("."), ""][1]
            allowed = other == part or part not in MAY_IMPORT or other in MAY_IMPORT[part]
            if not allowed or (other == "cli" and part not in ("cli", "__main__")):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_no_modules_import_each_other_in_a_circle():
    graph = {module_name(path): imports_of(path) for path in PACKAGE.rglob("*.py")}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_networks_say_what_and_not_how(path):
    found = re.findall(r"autograd|mkldnn|_cdata|lru_cache|device\.type", path.read_text())
    assert not found


@pytest.mark.parametrize(("family", "most"), [("swin", 240), ("coat", 310), ("pit", 220)])
def test_a_family_is_read_in_one_sitting(family, most):
    assert len((PACKAGE / "backbones" / f"{family}.py").read_text().splitlines()) <= most


def test_errors_need_no_torch():
    program = "import sys, mm_vitbackbones.errors; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
