"""The file of a test's predictions."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from mm_vitbackbones.cli.predictions import keep_predictions, scratch_next_to
from mm_vitbackbones.errors import OutputError, UserError

pytest.importorskip("mmengine")


def test_predictions_are_written_next_to_their_place_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no such folder"))
    out = tmp_path / "out/a.json"
    with scratch_next_to(out) as scratch:
        for kind in ("bbox", "segm"):
            (scratch / f"predictions.{kind}.json").write_text(kind)
        keep_predictions(out, scratch)
    assert {path.name: path.read_text() for path in out.parent.iterdir()} == {"a.json": "bbox", "a.segm.json": "segm"}


def test_a_file_that_was_made_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "a.pkl"
    with scratch_next_to(out) as scratch:
        (scratch / "predictions.pkl").write_text("new")
        out.write_text("mine")
        with pytest.raises(UserError, match=r"a.pkl was made meanwhile, and is not overwritten"):
            keep_predictions(out, scratch)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.pkl", "mine")]


def test_a_disk_without_room_is_named_before_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(OutputError, match=r"--out .*a.pkl: 100 bytes are free"), scratch_next_to(tmp_path / "b/a.pkl"):
        pass
    assert [*tmp_path.iterdir()] == []
