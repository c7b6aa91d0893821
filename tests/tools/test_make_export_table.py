"""tools/make_export_table.py: the table of docs/export.md is the one of its record."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from helpers.paths import ROOT
from mm_vitbackbones.build import backbone_names, families
from mm_vitbackbones.exporting import packages


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_export_table", ROOT / "tools" / "make_export_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_has_what_was_measured(tool: ModuleType) -> None:
    page = tool.PAGE.read_text("utf-8")
    assert tool.with_table(page, json.loads(tool.RECORD.read_text("utf-8"))) == page


def right(row: dict[str, Any]) -> bool:
    """Whether a file is right at all sizes, and holds little but its weights."""
    return row["failures"] == [] and row["error"] <= 1e-4 and abs(row["bytes"] / row["weights"] - 1) < 0.05


def test_every_network_of_the_table_was_exported_in_every_way_in_time(tool: ModuleType) -> None:
    found = json.loads(tool.RECORD.read_text("utf-8"))
    small, large = tool.networks([]), tool.largest([])
    assert {*found} == {*small, *large}
    for name, rows in found.items():
        assert rows.keys() == tool.WAYS.keys()
        for row in rows.values():
            assert right(row), (name, row)
            assert row["core_seconds"] < (30 if name in small else 120), (name, row)


NAMES = [next(name for name, (kind, _) in backbone_names().items() if kind is family) for family in families().values()]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["torch.export", "ONNX, fixed size", "ONNX, free sizes"])
@pytest.mark.parametrize("name", NAMES)
def test_published_networks_are_exported(tool: ModuleType, name: str, way: str) -> None:
    if way.startswith("ONNX"):
        for package in packages.NEEDED:
            pytest.importorskip(package)
    row = tool.apart(name, way, 600)
    assert "failure" not in row, row
    assert right(row), row


def test_every_family_is_exported_once(tool: ModuleType) -> None:
    names = tool.networks([])
    assert len(names) == len(families())
    assert {"pvt_v2_b0", "mit_b0", "swin_tiny"} <= {*names}
    assert tool.networks(["PVTv2"]) == ["pvt_v2_b0"]


def test_largest_network_that_there_is_room_for_is_exported(tool: ModuleType) -> None:
    assert tool.largest(["DINOv3", "CoaT"]) == ["dino_v3_huge_plus", "coat_lite_medium"]


def test_failures_are_in_the_table(tool: ModuleType) -> None:
    row = dict(
        seconds=2.4,
        core_seconds=1.2,
        nodes=3,
        bytes=2**20,
        weights=2**19,
        error=None,
        failures=["32x32  1  inf  fails: a|b"],
    )
    assert tool.cell(row) == "1 s, 3 nodes, 1.0 MiB (+100.0%), wrong: 32x32  1  inf  fails: a/b"
    assert tool.cell({**row, "failures": [], "error": 2e-6}).endswith(", 2e-06")
    assert tool.cell({"failure": "more than 300 s"}) == "fails: more than 300 s"
    assert tool.cell(None) == "not run"


def test_what_was_measured_is_not_measured_again(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, page = tmp_path / "export.json", tmp_path / "export.md"
    page.write_text(f"before\n{tool.BEGIN}\n{tool.END}\nafter\n")
    record.write_text(json.dumps({"mit_b0": {"torch.export": {"failure": "kept"}}}))
    monkeypatch.setattr(tool, "RECORD", record)
    monkeypatch.setattr(tool, "PAGE", page)
    asked: list[str] = []
    monkeypatch.setattr(tool, "apart", lambda name, way, timeout: asked.append(way) or {"failure": "new"})
    monkeypatch.setattr(sys, "argv", ["make_export_table.py", "MiT", "--of", "first"])
    tool.main()
    assert asked == [way for way in tool.WAYS if way != "torch.export"]
    monkeypatch.setattr(sys, "argv", ["make_export_table.py", "MiT", "--of", "largest", "--way", "ONNX, free sizes"])
    asked.clear()
    tool.main()
    assert asked == ["ONNX, free sizes"]
    assert "| `mit_b5` | not run | not run | fails: new |" in page.read_text()
    assert page.read_text().startswith("before\n")
    assert "| `mit_b0` | fails: kept | fails: new | fails: new |" in page.read_text()


def test_unknown_family_is_one_line(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["make_export_table.py", "Swim"])
    with pytest.raises(SystemExit) as stop:
        tool.main()
    assert stop.value.code == "error: there is no family 'Swim'; did you mean 'Swin'?"
