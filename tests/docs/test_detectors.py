"""The page of the libraries' detectors and segmentors. What it says that they do is tried out by
``tests/mmcv_ops/test_library_models.py``, whole and slowly."""

from __future__ import annotations

import ast
import importlib
from importlib.util import find_spec
from pathlib import Path

import pytest

from helpers.library_models import DETECTORS, SEGMENTORS
from helpers.pages import models_of_libraries, path_of
from mm_vitbackbones import libraries
from mm_vitbackbones.mmcv_ops import extension


def test_table_has_the_models_that_are_tried_out_by_their_configs() -> None:
    tried = {name: config for name, (config, *_) in (DETECTORS | SEGMENTORS).items()}
    rows = models_of_libraries()
    assert {name: row.config for name, row in rows.items()} == tried
    assert {row.plain for row in rows.values()} == {"works"}


def imported_operators(library: str) -> set[tuple[str, str]]:
    """The files of ``mmcv/ops`` and the names in them that a library's modules import."""
    spec = find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"needs {library}")
    libraries.use(library)
    everything = importlib.import_module("mmcv.ops")
    found = set()
    for path in Path(spec.submodule_search_locations[0]).rglob("*.py"):
        if ".mim" in path.parts or "mmcv.ops" not in (text := path.read_text(encoding="utf-8")):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mmcv.ops"):
                for name in node.names:
                    origin = getattr(everything, name.name, None)
                    module = origin.__module__ if origin else f"{node.module}"
                    found.add((module.rpartition(".")[2], name.name))
    return found


@pytest.mark.mmdet
@pytest.mark.mmseg
@pytest.mark.parametrize("library", ["mmdet", "mmseg"])
def test_every_operator_that_the_libraries_import_has_a_plain_form(library: str) -> None:
    plain = extension._plain_functions()
    found = imported_operators(library)
    assert ("point_sample", "point_sample") in found
    missing = {
        (file, name)
        for file, name in found
        for function in extension.FUNCTIONS.get(file, ())
        if function not in plain and function not in ("nms_rotated", "nms_quadri")
    }
    assert missing == set()
    assert not {"nms_rotated", "nms_quadri"} & {name for _, name in found}


def test_page_names_each_operator_without_a_plain_form_that_a_config_asks_for() -> None:
    assert "sync_bn" in extension.FUNCTIONS
    assert not set(extension.FUNCTIONS["sync_bn"]) & set(extension._plain_functions())
    assert "`MMSyncBN`" in path_of("docs/detectors.md").read_text(encoding="utf-8")
