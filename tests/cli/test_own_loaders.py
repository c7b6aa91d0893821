"""Images of five bands and masks in other files: the loading transforms of the user are asked by every tool."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers.own_loaders import write_bands
from helpers.runs import write_config

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mm_vitbackbones.cli import check_data, predict, test, train
from mm_vitbackbones.cli.arguments import run

pytestmark = [pytest.mark.mmdet, pytest.mark.mmseg, pytest.mark.xdist_group("own_loaders")]

SEGMENTOR = """
_base_ = "tiny_segmentor.py"
model = dict(
    data_preprocessor=dict(mean=[1000] * 5, std=[300] * 5),
    backbone=dict(in_channels=5),
    decode_head=dict(num_classes=2),
)
train_pipeline = [dict(type="LoadBands"), dict(type="LoadNpyMask"), dict(type="PackSegInputs")]
files = dict(
    data_root="{root}",
    data_prefix=dict(img_path="images", seg_map_path="masks"),
    img_suffix=".npy",
    seg_map_suffix=".npy",
    reduce_zero_label=False,
    metainfo=dict(_delete_=True, classes=("ground", "tree")),
    pipeline=train_pipeline,
)
train_dataloader = dict(batch_size=2, dataset=files)
val_dataloader = dict(dataset=files)
test_dataloader = val_dataloader
num_classes = 2
train_cfg = dict(max_iters=1, val_interval=1)
"""

DETECTOR = """
_base_ = "tiny_detector.py"
model = dict(
    data_preprocessor=dict(mean=None, std=None, bgr_to_rgb=False),
    backbone=dict(in_channels=5),
    bbox_head=dict(num_classes=1),
)
meta = ("img_id", "img_path", "ori_shape", "img_shape")
pipeline = [
    dict(type="LoadBands"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=(*meta,)),
]
test_pipeline = [
    dict(type="LoadBands"),
    dict(type="Resize", scale=(96, 96), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=(*meta, "scale_factor")),
]
files = dict(
    data_root="{root}",
    ann_file="boxes.json",
    data_prefix=dict(img="images"),
    metainfo=dict(classes=("tree",)),
)
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=pipeline, **files))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **files))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file="{root}/boxes.json")
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1, val_interval=2)
"""


@pytest.mark.parametrize(("base", "text"), [("tiny_segmentor", SEGMENTOR), ("tiny_detector", DETECTOR)])
def test_every_tool_takes_five_bands(base: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_bands(tmp_path / "bands")
    write_config(base, tmp_path, tmp_path)  # its data set is replaced
    config = tmp_path / "bands.py"
    config.write_text(text.replace("{root}", str(tmp_path / "bands")))
    work = tmp_path / "work"

    assert run(check_data.main, [str(config), "--check-all"]) == 0, capsys.readouterr().err
    assert run(train.main, [str(config), "--work-dir", str(work)]) == 0, capsys.readouterr().err
    (checkpoint,) = work.glob("[ei]*_1.pth")  # epoch or iter, not the best
    drawn = tmp_path / "drawn"
    arguments = [str(config), str(checkpoint), "--show-dir", str(drawn), "--work-dir", str(tmp_path / "test")]
    assert run(test.main, arguments) == 0, capsys.readouterr().err
    assert sorted(path.name for path in drawn.iterdir()) == ["0_gt_pred.png", "1_gt_pred.png"]
    out = tmp_path / "out"
    np.save(tmp_path / "rgb.npy", np.zeros((48, 64, 3), np.float32))
    given = [str(tmp_path / "bands/images"), str(tmp_path / "rgb.npy")]
    with pytest.raises(SystemExit):
        run(predict.main, [str(config), str(checkpoint), *given, "--out", str(out), "--device", "cpu"])
    assert f"skipped {given[1]}: images have 3 channels, and the backbone takes 5" in capsys.readouterr().err
    assert {path.name for path in out.glob("?.png")} == {"0.png", "1.png"}
