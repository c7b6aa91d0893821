"""Masks that cannot be right are found before a run, each with what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmseg")

from mmengine.registry import DefaultScope

from mm_vitbackbones.data import masks as labels
from mm_vitbackbones.errors import UserError

pytestmark = pytest.mark.mmseg
CLASSES = ("cat", "dog", "fox")


class Folder:
    """A data set of three images of 6x4 pixels, with masks of the values 0 (unlabelled) to 3."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for kind in ("images", "masks"):
            (root / kind).mkdir()
        for i in range(3):
            Image.fromarray(np.full((4, 6, 3), i, np.uint8)).save(root / "images" / f"{i}.png")
            self.mask(i, np.arange(24, dtype=np.uint8).reshape(4, 6) % 4)

    def mask(self, index: int, values: np.ndarray, suffix: str = ".png") -> None:
        Image.fromarray(values).save(self.root / "masks" / f"{index}{suffix}")

    def check(self, every: bool = False, **changes) -> None:
        dataset = dict(
            type="BaseSegDataset",
            data_root=str(self.root),
            data_prefix=dict(img_path="images", seg_map_path="masks"),
            img_suffix=".png",
            seg_map_suffix=".png",
            metainfo=dict(classes=CLASSES),
            reduce_zero_label=True,
        )
        with DefaultScope.overwrite_default_scope("mmseg"):
            labels.check_masks(dataset | changes, "train_dataloader", every)


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(labels, "print_log", lambda line, **kwargs: lines.append(line))
    return lines


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.mark.parametrize("every", [False, True])
def test_good_masks_pass(folder, every):
    folder.mask(1, np.full((4, 6), 255, np.uint8))  # nothing but ignored
    folder.check(every)


def test_masks_with_a_palette_are_read_by_their_numbers(folder):
    mask = Image.fromarray(np.full((4, 6), 2, np.uint8), "L").convert("P")
    mask.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10] + [0] * 759)
    mask.save(folder.root / "masks" / "1.png")
    folder.check()


def test_colour_mask_is_refused(folder):
    folder.mask(1, np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(UserError, match=r"1\.png has 3 channels: a mask has one"):
        folder.check()


def test_label_of_no_class_is_refused(folder):
    values = np.ones((4, 6), np.uint8)
    values[0, :2] = 4
    folder.mask(2, values)
    with pytest.raises(UserError, match=r"2\.png has the labels 4 \(2 pixels\), and the 3 classes are 1 to 3"):
        folder.check()
    folder.check(metainfo=dict(classes=(*CLASSES, "owl")))
    with pytest.raises(UserError, match=r"the labels 3 \(\d+ pixels\), and the 3 classes are 0 to 2"):
        folder.check(reduce_zero_label=False)


def test_jpeg_mask_is_refused(folder):
    folder.mask(1, np.ones((4, 6), np.uint8), ".jpg")
    (folder.root / "masks" / "1.jpg").rename(folder.root / "masks" / "1.png")
    with pytest.raises(UserError, match=r"1\.png is a JPEG file"):
        folder.check()


def test_mask_of_another_size_is_refused(folder):
    folder.mask(1, np.ones((6, 4), np.uint8))
    with pytest.raises(UserError, match="is 4x6, and its image 6x4"):
        folder.check()


def test_missing_mask_is_refused_and_spare_mask_is_reported(folder, logged):
    (folder.root / "masks" / "1.png").unlink()
    with pytest.raises(UserError, match=r"1 of 3 images have no mask; .*masks/1\.png"):
        folder.check()
    folder.mask(1, np.ones((4, 6), np.uint8))
    folder.mask(7, np.ones((4, 6), np.uint8))
    folder.check()
    assert "1 masks have no image" in logged[0]


def test_file_that_is_no_image_is_refused(folder):
    (folder.root / "masks" / "1.png").write_text("<html>")
    with pytest.raises(UserError, match=r"cannot be read: .*1\.png"):
        folder.check()


def test_no_images_is_an_error(folder):
    with pytest.raises(UserError, match=r"no image \*\.jpg in .*images"):
        folder.check(img_suffix=".jpg")


def test_absent_class_is_reported(folder, logged):
    for i in range(3):
        folder.mask(i, np.ones((4, 6), np.uint8))
    folder.check(every=True)
    assert "the 3 masks hold no pixel of dog, fox" in logged[-1]


def test_check_all_finds_what_a_sample_misses(folder, monkeypatch):
    monkeypatch.setattr(labels, "SAMPLE", 1)
    folder.mask(1, np.zeros((4, 6, 3), np.uint8))
    folder.check()
    with pytest.raises(UserError, match="3 channels"):
        folder.check(every=True)


def test_image_size_follows_its_exif_rotation(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((6, 4, 3), np.uint8)).save(folder.root / "images" / "1.png", exif=exif)
    folder.check()
