"""YOLO's folders, as its trainer, Roboflow, CVAT and Label Studio write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.sources import WIDTH, annotations, check, convert, objects, write_image, write_text
from mm_vitbackbones.errors import UserError

pytest.importorskip("mmdet")
pytestmark = pytest.mark.mmdet

BOX = "1 0.5 0.5 0.5 0.4\n"
FOUND = ("dog", [10, 9, 20, 12])
OUTLINE = "0 0.1 0.1 0.6 0.1 0.6 0.9\n"


def layout(root: Path, images: str, labels: str, yaml: str | None, extra: dict[str, str] | None = None) -> Path:
    """One image for each of train and val, in folders with the split's name in place of {}."""
    for split in ("train", "val"):
        write_image(root / images.format(split) / f"{split}.jpg")
        write_text(root / labels.format(split) / f"{split}.txt", BOX)
    if yaml:
        write_text(root / "data.yaml", yaml)
    for name, text in (extra or {}).items():
        write_text(root / name, text)
    return root


NAMES = "names: [cat, dog]\n"
LAYOUTS = {
    "ultralytics": ("images/{}", "labels/{}", "path: /content/set\ntrain: images/train\nval: images/val\n" + NAMES, {}),
    "numbered": ("images/{}", "labels/{}", "train: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n", {}),
    "roboflow": (
        "{}/images",
        "{}/labels",
        "train: ../train/images\nval: ../val/images\ntest: ../test/images\n" + NAMES,
        {},
    ),
    "absolute": ("images/{}", "labels/{}", "train: /content/images/train\nval: /content/images/val\n" + NAMES, {}),
    "lists": (
        "images/{}",
        "labels/{}",
        "train: train.txt\nval: val.txt\n" + NAMES,
        {"train.txt": "./images/train/train.jpg\n", "val.txt": "./images/val/val.jpg\n"},
    ),
    "folders alone": ("images/{}", "labels/{}", None, {"classes.txt": "cat\ndog\n"}),
    "darknet": ("{}", "{}", None, {"obj.names": "cat\ndog\n"}),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_is_read_with_its_own_split(tmp_path: Path, name: str) -> None:
    out = convert(layout(tmp_path / "yolo", *LAYOUTS[name]))
    for split in ("train", "val"):
        assert objects(out, split) == {f"{split}/{split}.jpg": [FOUND]}
        assert check(out, split).kept == 1
        categories = annotations(out, split)["categories"]
        assert categories == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images without a split."""
    root = tmp_path / "yolo"
    for i in range(10):
        write_image(root / "images" / f"{i}.jpg")
        write_text(root / "labels" / f"{i}.txt", BOX)
    write_text(root / "data.yaml", NAMES)
    return root


def test_outlines_become_masks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(10):
        write_text(folder / "labels" / f"{i}.txt", OUTLINE)
    out = convert(folder)
    assert "--task instance" in capsys.readouterr().out
    assert check(out, masks=True).kept == 8
    first = annotations(out)["annotations"][0]
    assert first["segmentation"] == [[4.0, 3.0, 24.0, 3.0, 24.0, 27.0]]
    assert first["bbox"] == [4, 3, 20, 24]
    assert first["area"] == pytest.approx(240, rel=0.06)  # half of the box


def test_boxes_among_outlines_are_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_text(folder / "labels/0.txt", OUTLINE)
    convert(folder)
    said = capsys.readouterr().out
    assert "--task detection" in said
    assert "1 of 10 objects have an outline" in said


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("2 0.5 0.5 0.5 0.4", "of a number that is no class (there are 0 to 1)"),
        ("1 20 15 20 12", "with coordinates that are not from 0 to 1"),
        ("1 0.5 0.5 0.5 0.4 0.93", "with six numbers, as of predictions with a score"),
        ("1 0.5 0.5", "with 3 numbers, which is neither a box nor a polygon"),
        ("dog 0.5 0.5 0.5 0.4", "on a line that holds no numbers"),
        ("1 0.5 0.5 0.01 0.4", "thinner than a pixel"),
        ("1 nan 0.5 0.5 0.4", "with coordinates that are not from 0 to 1"),
        ("1 0.5 0.5 0.5 0.4", "that are there twice"),
        ("nan 0.5 0.5 0.5 0.4", "of a number that is no class (there are 0 to 1)"),
        ("0 0.1 0.1 0.5 0.1 0.9 0.1", "whose mask holds no pixel"),
    ],
)
def test_unusable_line_is_left_out_and_reported(
    folder: Path, line: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text(folder / "labels/3.txt", BOX + line + "\n")
    out = convert(folder)
    assert sum(map(len, [*objects(out).values(), *objects(out, "val").values()])) == 10
    assert f"left out: 1 object {why} (3." in capsys.readouterr().out


def test_keypoints_leave_the_box(folder: Path) -> None:
    write_text(folder / "data.yaml", NAMES + "kpt_shape: [2, 3]\n")
    for i in range(10):
        write_text(folder / "labels" / f"{i}.txt", BOX.strip() + " 0.4 0.4 2 0.6 0.6 1\n")
    assert objects(convert(folder))["train/0.jpg"] == [FOUND]


def test_image_without_labels_is_kept_as_background(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "labels/4.txt").unlink()
    write_text(folder / "labels/5.txt", "")
    out = convert(folder)
    assert len(objects(out)) + len(objects(out, "val")) == 10
    assert "1 image without a label file, taken as images without objects (4.jpg)" in capsys.readouterr().out


def test_sizes_are_those_of_the_turned_image(tmp_path: Path) -> None:
    root = tmp_path / "yolo"
    for i in range(2):
        write_image(root / f"{i}.jpg", orientation=6)
        write_text(root / f"{i}.txt", BOX)
    write_text(root / "classes.txt", "cat\ndog\n")
    out = convert(root)
    image = annotations(out)["images"][0]
    assert (image["width"], image["height"]) == (30, WIDTH)
    assert check(out).kept == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nc: 2\ntrain: images\n", "has no names"),
        ("names: [cat\n", "is no YAML"),
        ("names: {1: cat, 2: dog}\n", "no numbers from 0 to 1 without a gap"),
        ("names: [cat, cat]\n", "names the class 'cat' more than once"),
        ("names: [cat, dog]\ntrain: nowhere\n", "train: nowhere is not there"),
    ],
)
def test_wrong_yaml_is_refused(folder: Path, text: str, message: str) -> None:
    file = write_text(folder / "data.yaml", text)
    with pytest.raises(UserError, match=message):
        convert(file, "--format", "yolo")
    assert not (folder.parent / "out").exists()
