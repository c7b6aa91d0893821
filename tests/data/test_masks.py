"""Masks that cannot be right are found before a run, each with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmseg")

from mmengine.registry import DATASETS, DefaultScope
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations

import helpers.own_loaders  # noqa: F401  # registers LoadNpyMask
from mm_vitbackbones.data import masks as labels
from mm_vitbackbones.errors import UserError

pytestmark = pytest.mark.mmseg
CLASSES = ("cat", "dog", "fox")
LOAD, ANNOTATE = dict(type="LoadImageFromFile"), dict(type="LoadAnnotations")


@DATASETS.register_module(force=True)
class ManyClasses(BaseSegDataset):
    """150 classes, of which a config can choose some, as of ADE20K's."""

    METAINFO: ClassVar = dict(classes=tuple(f"class_{i}" for i in range(150)), palette=[(i, 0, 0) for i in range(150)])


def white_is_dog(results: dict[str, Any]) -> dict[str, Any]:
    """A step of the user's own, which makes masks of 0 and 255 labels 0 and 1."""
    labels = results["gt_seg_map"]
    return {**results, "gt_seg_map": (labels == 255).astype(np.uint8)}


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

    def check(self, every: bool = False, where: str = "train_dataloader", **changes) -> None:
        dataset = dict(
            type="BaseSegDataset",
            data_root=str(self.root),
            data_prefix=dict(img_path="images", seg_map_path="masks"),
            img_suffix=".png",
            seg_map_suffix=".png",
            metainfo=dict(classes=CLASSES),
            reduce_zero_label=True,
            pipeline=[LOAD, ANNOTATE],
        )
        with DefaultScope.overwrite_default_scope("mmseg"):
            labels.check_masks(dataset | changes, where, every)


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


def test_mask_of_one_row_is_refused(folder):
    for kind in ("images", "masks"):
        Image.new("L", (6, 1), 1).save(folder.root / kind / "1.png")
    with pytest.raises(UserError, match=r"masks/1\.png is one pixel wide or high"):
        folder.check()


def test_missing_mask_is_refused_and_spare_mask_is_reported(folder, logged):
    (folder.root / "masks" / "1.png").unlink()
    with pytest.raises(UserError, match=r"1 of 3 masks are missing, the first is .*masks/1\.png"):
        folder.check()
    folder.mask(1, np.ones((4, 6), np.uint8))
    folder.mask(7, np.ones((4, 6), np.uint8))
    folder.check()
    assert "images or masks that are not read, as they are no pair: 1, such as" in logged[0]
    assert logged[0].endswith("masks/7.png")


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


# ---- labels as the library's loader gives them


@pytest.mark.parametrize("reduce", [False, True])
@pytest.mark.parametrize("chosen", [None, (149, 0, 254, 7)])
def test_label_of_every_value_is_the_librarys(tmp_path, reduce, chosen):
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "0.png")
    renamed = {old: chosen.index(old) if old in chosen else 255 for old in range(255)} if chosen else None
    info = dict(seg_map_path=str(tmp_path / "0.png"), reduce_zero_label=reduce, label_map=renamed, seg_fields=[])
    theirs = LoadAnnotations()(info)["gt_seg_map"]
    assert np.array_equal(labels.label_table(reduce, renamed or {})[values], theirs)


def test_some_of_many_classes_are_chosen_after_zero_is_reduced(folder):
    for i in range(3):
        folder.mask(i, np.full((4, 6), 150, np.uint8))  # class_149
    some = dict(type="ManyClasses", metainfo=dict(classes=("class_149", "class_3")))
    folder.check(**some)
    folder.mask(1, np.full((4, 6), 151, np.uint8))
    with pytest.raises(UserError, match=r"the labels 151 \(24 pixels\), and the 150 classes are 1 to 150 \(255 and 0"):
        folder.check(**some)


@pytest.mark.parametrize(("kind", "value"), [(np.int32, -1), (np.uint16, 65535)])
def test_all_ones_of_a_wide_mask_are_ignored_as_by_the_loader(folder, kind, value):
    values = np.ones((4, 6), kind)
    values[0] = value
    folder.mask(1, values, ".tif")
    (folder.root / "masks" / "1.tif").rename(folder.root / "masks" / "1.png")
    folder.check()


@pytest.mark.parametrize(("kind", "value"), [(np.uint16, 257), (np.int32, -2), (np.float32, 1.5), (np.float32, np.nan)])
def test_value_that_the_loader_would_wrap_or_round_is_refused(folder, kind, value):
    values = np.ones((4, 6), kind)
    values[0, 0] = value
    Image.fromarray(values).save(folder.root / "masks" / "1.png", "TIFF")
    with pytest.raises(UserError, match=rf"1\.png has the labels {value} \(1 pixels\)"):
        folder.check()


def test_reduce_zero_label_of_the_loader_is_that_of_the_dataset(folder):
    with pytest.raises(UserError, match="LoadAnnotations has reduce_zero_label=False, and the dataset True"):
        folder.check(pipeline=[LOAD, dict(ANNOTATE, reduce_zero_label=False)])


# ---- masks that leave nothing to learn


def test_black_and_white_masks_of_two_classes_are_refused(folder):
    for i in range(3):
        folder.mask(i, np.arange(24, dtype=np.uint8).reshape(4, 6) % 2 * 255)
    two = dict(metainfo=dict(classes=CLASSES[:2]), reduce_zero_label=False)
    with pytest.raises(UserError, match="'dog' has no pixel: save masks with 0 for 'cat' and 1 for 'dog'"):
        folder.check(**two)
    folder.check(**two, pipeline=[LOAD, ANNOTATE, white_is_dog])


@pytest.mark.parametrize("kind", ["BaseSegDataset", "ADE20KDataset", "ADE20KDatasetOfOwn"])
def test_two_classes_counted_from_0_are_not_trained_with_0_ignored(folder, kind):
    with DefaultScope.overwrite_default_scope("mmseg"):
        ade = DATASETS.get("mmseg.ADE20KDataset")
    names = dict(BaseSegDataset=("cat", "dog"), ADE20KDataset=("wall", "sky")).get(kind)
    if kind == "ADE20KDatasetOfOwn":

        @DATASETS.register_module(force=True)
        class ADE20KDatasetOfOwn(ade):
            METAINFO: ClassVar = dict(classes=("cat", "dog"), palette=[(0, 0, 0), (255, 0, 0)])

    for index in range(3):
        folder.mask(index, np.arange(24, dtype=np.uint8).reshape(4, 6) % 2)
    given = dict(type=kind, metainfo=dict(classes=names) if names else {})
    if kind == "BaseSegDataset":  # the others have it by themselves
        given["reduce_zero_label"] = True
    with pytest.raises(
        UserError, match=r"of one class, .* as reduce_zero_label=True ignores 0 in masks: set it to False"
    ):
        folder.check(seg_map_suffix=".png", **given)
    folder.check(where="val_dataloader", **given)  # a few images may well be of one class
    if kind != "ADE20KDataset":  # of which 0 and 1 are wall and building
        folder.check(**{**given, "reduce_zero_label": False})


def test_classes_counted_from_0_with_0_ignored_are_reported(folder, logged):
    folder.check(reduce_zero_label=True, metainfo=dict(classes=(*CLASSES, "last")))
    assert "no pixel of last; reduce_zero_label=True ignores 0, with 255 25 % of all pixels" in logged[-1]
    folder.check(reduce_zero_label=True)
    assert len(logged) == 1


@pytest.mark.parametrize(
    ("classes", "values", "words"),
    [
        (CLASSES, (1, 2, 3), "or set reduce_zero_label=True of the dataset, if its masks hold 1 to 3"),
        (("cat",), (0, 1), "or name the background as the first of two classes, .'background', 'cat'."),
    ],
)
def test_other_numbers_of_classes_are_named_with_what_to_do(folder, classes, values, words):
    for index in range(3):
        folder.mask(index, np.array(values, np.uint8)[np.arange(24).reshape(4, 6) % len(values)])
    with pytest.raises(UserError, match=words):
        folder.check(metainfo=dict(classes=classes), reduce_zero_label=False)


@pytest.mark.parametrize("kind", ["ADE20KDataset", "CityscapesDataset"])
def test_own_classes_of_a_set_with_classes_name_the_plain_set(folder, kind):
    with pytest.raises(UserError, match=rf"{kind} has classes of its own, .* 'dog', 'fox' not .*BaseSegDataset"):
        folder.check(type=kind)


def test_two_classes_with_255_pass(folder, logged):
    for index in range(3):
        folder.mask(index, np.array((0, 1, 255), np.uint8)[np.arange(24).reshape(4, 6) % 3])
    folder.check(metainfo=dict(classes=("ground", "tree")), reduce_zero_label=False)
    assert not logged


@pytest.mark.parametrize("reduce", [False, True])
def test_masks_without_any_class_are_refused(folder, reduce):
    for i in range(3):
        folder.mask(i, np.full((4, 6), 0 if reduce and i else 255, np.uint8))
    with pytest.raises(UserError, match="all are ignored: save for each pixel the number of its class"):
        folder.check(reduce_zero_label=reduce)


def test_a_class_outside_of_the_sample_is_looked_for(folder, monkeypatch):
    monkeypatch.setattr(labels, "SAMPLE", 1)
    for i in range(3):
        folder.mask(i, np.full((4, 6), 255 * (i < 2), np.uint8) + (i == 2))
    folder.check(metainfo=dict(classes=CLASSES[:2]), reduce_zero_label=False)


# ---- the pipeline's own loaders


def test_masks_are_read_by_a_loader_of_the_users_own(folder):
    for i in range(3):
        np.save(folder.root / "masks" / f"{i}.npy", np.arange(24).reshape(4, 6) % 3 * 10)
        (folder.root / "masks" / f"{i}.png").unlink()
    own = dict(seg_map_suffix=".npy", pipeline=[LOAD, dict(type="LoadNpyMask")], reduce_zero_label=False)
    folder.check(**own)
    np.save(folder.root / "masks" / "1.npy", np.full((4, 6), 40))
    with pytest.raises(UserError, match=r"1\.npy has the labels 4 \(24 pixels\), and the 3 classes are 0 to 2"):
        folder.check(**own)
    np.save(folder.root / "masks" / "1.npy", np.zeros((6, 4)))
    with pytest.raises(UserError, match=r"1\.npy is 4x6, and its image 6x4"):
        folder.check(**own)
    (folder.root / "masks" / "1.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match=r"1\.png and its mask .*1\.npy cannot be loaded: "):
        folder.check(**own)


def test_training_needs_a_step_that_loads_masks_and_a_test_does_not(folder):
    with pytest.raises(UserError, match="no step of the pipeline loads masks: add dict"):
        folder.check(pipeline=[LOAD])
    folder.check(where="test_dataloader", pipeline=[LOAD])


def test_images_are_turned_as_their_loader_turns_them(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(folder.root / "images" / "1.png", exif=exif)
    with pytest.raises(UserError, match="is 6x4, and its image 4x6"):
        folder.check()
    folder.check(pipeline=[dict(LOAD, color_type="color_ignore_orientation"), ANNOTATE])


# ---- files


def test_a_listed_image_that_is_not_there_is_refused(folder, logged):
    (folder.root / "some.txt").write_text("0\n5\n")
    with pytest.raises(UserError, match=r"1 of 2 images are missing, the first is .*images/5\.png"):
        folder.check(ann_file="some.txt")
    (folder.root / "some.txt").write_text("0\n2\n")
    folder.check(ann_file="some.txt")
    folder.check(indices=2)
    assert not any("not read" in line for line in logged)  # others are left out on purpose


def test_mask_above_pillows_limit_is_refused_in_one_line(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(
        UserError, match=r"0\.png cannot be read: it has more pixels than the limit of 134,217,728; .*_LIMITS=10"
    ):
        folder.check()


def test_image_above_opencvs_limit_is_refused_in_one_line(folder, monkeypatch):
    def fail(*args: Any) -> None:
        raise cv2.error("(-215:Assertion failed) pixels <= CV_IO_MAX_IMAGE_PIXELS in function 'validateInputImageSize'")

    monkeypatch.setattr(cv2, "imdecode", fail)
    with pytest.raises(
        UserError, match=r"0\.png cannot be read: it has more pixels than the limit of 134,217,728; .*_LIMITS=10"
    ):
        folder.check(every=True)


def test_image_that_its_loader_leaves_out_is_no_error(folder):
    (folder.root / "images" / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"images/1\.png cannot be read: "):
        folder.check(every=True)
    folder.check(every=True, pipeline=[dict(LOAD, ignore_empty=True), ANNOTATE])


def test_data_set_that_cannot_be_built_is_refused_in_one_line(folder):
    with pytest.raises(UserError, match=r"train_dataloader: the data set cannot be built: TypeError: .*color") as said:
        folder.check(color=["red"] * 500)
    assert len(str(said.value)) < 400


def test_data_set_without_masks_is_not_checked(folder):
    folder.check(data_prefix=dict(img_path="images"))
