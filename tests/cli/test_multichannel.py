"""Six bands in detection and segmentation, from the check of a config to drawings."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.bands import write_six_bands, write_tiff
from helpers.runs import write_config

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mm_vitbackbones import libraries
from mm_vitbackbones.cli import check_data, predict, train
from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.cli.config import load_config
from mm_vitbackbones.cli.dry_run import try_config
from mm_vitbackbones.cli.model import build_model
from mm_vitbackbones.errors import ArgumentError, UserError

pytestmark = [pytest.mark.mmdet, pytest.mark.mmseg, pytest.mark.xdist_group("own_loaders")]

SEGMENTOR = """
_base_ = "tiny_segmentor.py"
model = dict(
    data_preprocessor=dict(mean=[1000] * 6, std=[50] * 6),
    backbone=dict(in_channels=6),
    decode_head=dict(num_classes=2),
)
load = dict(type="mm_vitbackbones.LoadMultichannelImage")
train_pipeline = [
    load,
    dict(type="LoadAnnotations"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
files = dict(
    _delete_=True,
    type="BaseSegDataset",
    data_root="{root}",
    data_prefix=dict(img_path="images", seg_map_path="masks"),
    img_suffix="{suffix}",
    seg_map_suffix=".png",
    metainfo=dict(classes=("ground", "tree")),
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
    data_preprocessor=dict(
        type="mm_vitbackbones.MultichannelDetDataPreprocessor",
        mean=[1000] * 6,
        std=[50] * 6,
        bgr_to_rgb=False,
    ),
    backbone=dict(in_channels=6),
    bbox_head=dict(num_classes=1),
)
load = dict(type="mm_vitbackbones.LoadMultichannelImage")
train_pipeline = [
    load,
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    load,
    dict(type="Resize", scale=(96, 96), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
files = dict(
    data_root="{root}",
    ann_file="boxes.json",
    data_prefix=dict(img="images"),
    metainfo=dict(classes=("tree",)),
)
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=train_pipeline, **files))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **files))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file="{root}/boxes.json")
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1, val_interval=2)
"""
TASKS = {"detection": ("tiny_detector", DETECTOR), "segmentation": ("tiny_segmentor", SEGMENTOR)}


class Project:
    """A config of six bands and its data."""

    def __init__(self, task: str, suffix: str, root: Path) -> None:
        base, text = TASKS[task]
        root.mkdir()
        self.root = root / "data"
        self.images = write_six_bands(self.root, suffix)
        write_config(base, root, root)  # its data set is replaced
        self.config = root / "bands.py"
        self.text = text.replace("{root}", str(self.root)).replace("{suffix}", suffix)
        self.config.write_text(self.text)
        self._numbers = itertools.count()

    def replaced(self, old: str, new: str) -> Path:
        """The config with another text in one place."""
        assert old in self.text
        changed = self.config.with_name(f"changed_{next(self._numbers)}.py")
        changed.write_text(self.text.replace(old, new, 1))
        return changed


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Project]:
    root = tmp_path_factory.mktemp("bands")
    return {
        "detection": Project("detection", ".npy", root / "detection"),
        "segmentation": Project("segmentation", ".tif", root / "segmentation"),
    }


@pytest.mark.parametrize("task", TASKS)
def test_six_bands_pass_the_checks(task: str, projects: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(check_data.main, [str(projects[task].config), "--check-all"]) == 0, capsys.readouterr().err


MEAN = "mean=[1000] * 6"
FLIP = 'dict(type="RandomFlip", prob=0.5)'
COLOURS = 'dict(type="PhotoMetricDistortion")'
LOADER, PLAIN = '"mm_vitbackbones.LoadMultichannelImage"', '"LoadImageFromFile"'
HINT = "LoadMultichannelImage') loads"
OURS = 'type="mm_vitbackbones.MultichannelDetDataPreprocessor",'
TAKES_3 = "images have 6 channels, and the backbone takes 3"


@pytest.mark.parametrize(
    ("task", "old", "new", "words"),
    [
        ("detection", FLIP, COLOURS, "these have 6: remove"),
        ("segmentation", FLIP, COLOURS, "these have 6: remove"),
        ("detection", "in_channels=6", "in_channels=3", TAKES_3),
        ("segmentation", "in_channels=6", "in_channels=3", TAKES_3),
        ("detection", 'nelImage")', 'nelImage", bands=[1, 2])', "images have 2 channels"),
        ("detection", MEAN, "mean=[1000] * 5", "data_preprocessor.mean 5 values, which do not fit: give 6"),
        ("segmentation", MEAN, "mean=[1000] * 5", "mean 5 values, which do not fit: give 1 or 6"),
        ("detection", OURS, "", "with data_preprocessor.type='mm_v"),
        ("detection", "bgr_to_rgb=False", "bgr_to_rgb=True", "set it to False"),
        ("detection", LOADER, PLAIN, HINT),
        ("segmentation", LOADER, PLAIN, HINT),
        ("detection", 'nelImage")', 'nelImage", bands=[0, 1])', "numbered from 1"),
        ("segmentation", 'nelImage")', 'nelImage", bands=[7])', "takes band 7"),
    ],
)
def test_what_does_not_fit_six_bands_ends_in_one_line(
    task: str, old: str, new: str, words: str, projects: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = projects[task].replaced(old, new)
    assert run(check_data.main, [str(config)]) == 2
    (said,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert words in said


def test_the_check_looks_at_data_sets_around_the_one_with_the_images(
    projects: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    text = projects["detection"].text + (
        "train_dataloader = dict(dataset=dict(_delete_=True, type='MultiImageMixDataset', "
        "dataset=dict(type='CocoDataset', pipeline=train_pipeline[:2], **files), "
        "pipeline=[dict(type='Mosaic', img_scale=(32, 32)), *train_pipeline[2:]]))\n"
    )
    config = projects["detection"].config.with_name("mixed.py")
    config.write_text(text.replace("train_dataloader = dict(batch_size=2, dataset=dict(pi", "_ = dict(a=1, b=dict(pi"))
    assert run(check_data.main, [str(config)]) == 2
    assert "the step Mosaic takes images of 3" in capsys.readouterr().err


@pytest.mark.parametrize("task", TASKS)
def test_statistics_can_be_pasted(task: str, projects: Any, capsys: pytest.CaptureFixture[str]) -> None:
    project = projects[task]
    wrong = project.replaced(MEAN, "mean=[1] * 5")  # statistics come before a config that is right
    assert run(check_data.main, [str(wrong), "--statistics"]) == 0, capsys.readouterr().err
    lines = capsys.readouterr().out.splitlines()
    pasted: dict[str, Any] = {}
    exec("\n".join(lines[lines.index("model = dict(") :]), pasted)
    pixels = np.concatenate([image.reshape(-1, 6) for image in project.images]).astype(float)
    found = pasted["model"]["data_preprocessor"]
    np.testing.assert_allclose(found["mean"], pixels.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["std"], pixels.std(0), rtol=1e-5)
    assert pasted["model"]["backbone"] == dict(in_channels=6)
    assert ("type" in found) == (task == "detection")
    config = project.replaced("load =", "\n".join([*lines[lines.index("model = dict(") :], "load ="]))
    config.write_text(config.read_text().replace("model = dict(", "_ = dict(", 1))  # the pasted one counts
    head, classes = ("bbox_head", 1) if task == "detection" else ("decode_head", 2)
    with config.open("a") as file:
        file.write(f"model.update({head}=dict(num_classes={classes}))\n")
    assert run(check_data.main, [str(config)]) == 0, capsys.readouterr().err


def test_detection_is_normalised_by_each_band(projects: Any) -> None:
    libraries.use("mmdet")
    from mm_vitbackbones.engine.det_preprocessor import MultichannelDetDataPreprocessor

    mean, std = [1, 2, 3, 4, 5, 6], [1, 1, 1, 2, 2, 2]
    normalise = MultichannelDetDataPreprocessor(mean, std, pad_size_divisor=32)
    image = torch.randint(0, 255, (6, 20, 40), dtype=torch.uint8)
    given = normalise({"inputs": [image], "data_samples": None})["inputs"]
    expected = (image.float() - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    assert given.shape == (1, 6, 32, 64)
    assert torch.equal(given[0, :, :20, :40], expected)
    for wrong in (dict(std=[1] * 5), dict(std=[0] * 6), dict(bgr_to_rgb=True)):
        with pytest.raises(ArgumentError):
            MultichannelDetDataPreprocessor(**{"mean": mean, "std": std, **wrong})


def test_prediction_draws_the_bands_that_are_chosen(
    projects: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = projects["segmentation"]
    cfg = load_config(project.config, {})
    libraries.use("mmseg")
    torch.save({"state_dict": build_model(cfg).state_dict()}, tmp_path / "a.pth")
    folder = tmp_path / "images"
    folder.mkdir()
    image = np.zeros((48, 64, 6), np.uint8)
    image[..., 4] = 255  # red in the drawing
    write_tiff(folder / "a.tif", [*np.moveaxis(image, 2, 0)])
    (folder / "notes.txt").touch()
    drawn = {}
    for bands in ((5, 1, 2), (1, 2, 5)):
        out = tmp_path / f"out{bands[0]}"
        arguments = [str(project.config), str(tmp_path / "a.pth"), str(folder), "--out", str(out), "--device", "cpu"]
        assert run(predict.main, [*arguments, "--bands", *map(str, bands)]) == 0, capsys.readouterr().err
        drawn[bands] = np.asarray(Image.open(out / "a.png")).astype(int)
    difference = (drawn[5, 1, 2] - drawn[1, 2, 5]).mean((0, 1))
    assert difference[0] > 50
    assert difference[2] < -50
    assert abs(difference[1]) < 1
    with pytest.raises(UserError, match="numbered from 1"):
        predict.main([*arguments, "--bands", "0", "1", "2"])


def test_a_step_on_noise_has_six_bands(projects: Any) -> None:
    cfg = load_config(projects["segmentation"].config, {})
    libraries.use("mmseg")
    assert all(np.isfinite(loss) for loss in try_config(cfg, size=(64, 64), images=1).losses.values())


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_six_bands_train(task: str, projects: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = tmp_path / "work"
    assert run(train.main, [str(projects[task].config), "--work-dir", str(work)]) == 0, capsys.readouterr().err
    assert any(name.endswith("_1.pth") for name in os.listdir(work))
