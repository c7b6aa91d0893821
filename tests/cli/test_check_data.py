"""tools/check_data.py on whole configs."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.runs import run_tool, write_config

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mm_vitbackbones.data import mini

pytestmark = [pytest.mark.mmdet, pytest.mark.mmseg]


def test_check_data_reports_and_finds_a_missing_image(tmp_path: Path) -> None:
    mini.prepare(tmp_path / "mini", ["smoke"])
    detector = write_config("tiny_detector", tmp_path / "mini", tmp_path)
    result = run_tool("check_data", detector, "--check-all")
    assert result.returncode == 0, result.stderr
    assert "train_dataloader: " in result.stdout
    assert "of 16 images" in result.stdout
    assert "nothing wrong was found in train, val, test (every picture and mask)" in result.stdout

    result = run_tool("check_data", write_config("tiny_segmentor", tmp_path / "mini", tmp_path))
    assert result.returncode == 0, result.stderr
    assert "--check-all looks at every one" in result.stdout

    (tmp_path / "mini/images/smoke/smoke_0002.png").unlink()
    result = run_tool("check_data", detector, "--check-all")
    assert result.returncode == 2
    assert "1 of 16 pictures that were looked for are not in" in result.stderr
