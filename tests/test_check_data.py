"""tools/check_data.py on whole configs."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_segmenting import write_config as write_segmentor
from test_tools import REPOSITORY, run_tool

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mm_vitbackbones.datasets import mini

pytestmark = [pytest.mark.mmdet, pytest.mark.mmseg]


def test_a_detectors_and_a_segmentors_data(tmp_path: Path) -> None:
    mini.prepare(tmp_path / "mini", ["smoke"])
    detector = tmp_path / "tiny_detector.py"
    text = (REPOSITORY / "tests/configs/tiny_detector.py").read_text()
    detector.write_text(
        text.replace("{root}", str(tmp_path / "mini")).replace("{configs}", str(REPOSITORY / "configs"))
    )
    result = run_tool("check_data", detector, "--check-all")
    assert result.returncode == 0, result.stderr
    assert "train_dataloader: " in result.stdout
    assert "of 16 images" in result.stdout
    assert "nothing wrong was found in train, val, test (every picture and mask)" in result.stdout

    result = run_tool("check_data", write_segmentor(tmp_path / "mini", tmp_path))
    assert result.returncode == 0, result.stderr
    assert "--check-all looks at every one" in result.stdout

    (tmp_path / "mini/images/smoke/smoke_0002.png").unlink()
    result = run_tool("check_data", detector, "--check-all")
    assert result.returncode == 2
    assert "1 of 16 pictures that were looked for are not in" in result.stderr
