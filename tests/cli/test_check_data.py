"""tools/check_data.py on whole configs."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from helpers.runs import run_tool, write_config

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mm_vitbackbones.cli.datasets import distinct_datasets
from mm_vitbackbones.data import mini

pytestmark = [pytest.mark.mmdet, pytest.mark.mmseg]


def test_check_data_reports_and_finds_a_missing_image(tmp_path: Path) -> None:
    mini.prepare(tmp_path / "mini", ["smoke"])
    detector = write_config("tiny_detector", tmp_path / "mini", tmp_path)
    result = run_tool("check_data", detector, "--check-all")
    assert result.returncode == 0, result.stderr
    assert "train_dataloader: " in result.stdout
    assert "of 16 images" in result.stdout
    assert "val_dataloader and test_dataloader: " in result.stdout
    assert result.stdout.count("looking at images: 16/16") == 1  # all three have the same
    assert "nothing wrong was found in train, val, test (every image and mask)" in result.stdout
    assert result.stderr == ""

    result = run_tool("check_data", write_config("tiny_segmentor", tmp_path / "mini", tmp_path))
    assert result.stderr == ""
    assert result.returncode == 0, result.stderr
    assert "--check-all checks every one" in result.stdout

    (tmp_path / "mini/images/smoke/smoke_0002.png").unlink()
    result = run_tool("check_data", detector, "--check-all")
    assert result.returncode == 2
    assert "1 of 16 images that were looked for are not in" in result.stderr


def test_equal_datasets_are_one() -> None:
    def loader(**dataset) -> dict:
        return dict(dataset=dict(type="CocoDataset", ann_file="a.json", **dataset))

    splits = ("train", "val", "test")
    both = Config(
        dict(
            train_dataloader=dict(dataset=dict(type="RepeatDataset", times=4, **loader(pipeline=[1], filter_cfg={}))),
            val_dataloader=loader(pipeline=[2], test_mode=True),
            test_dataloader=loader(pipeline=[3], test_mode=True),
        )
    )
    found = [(where, seen) for where, _, seen in distinct_datasets(both, splits)]
    assert found == [("train_dataloader", False), ("val_dataloader and test_dataloader", True)]
    assert [where for where, _, _ in distinct_datasets(both, ["test"])] == ["test_dataloader"]

    alike = Config({f"{split}_dataloader": loader(pipeline=[split]) for split in splits})
    assert [where for where, _, _ in distinct_datasets(alike, splits)] == [
        "train_dataloader, val_dataloader and test_dataloader"
    ]

    unlike = Config({f"{split}_dataloader": loader(data_prefix=dict(img=split)) for split in splits})
    assert [(where, seen) for where, _, seen in distinct_datasets(unlike, splits)] == [
        (f"{split}_dataloader", False) for split in splits
    ]
