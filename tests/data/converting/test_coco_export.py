"""COCO JSON as CVAT, Label Studio and Roboflow export it."""

from __future__ import annotations

import copy
import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import coco
from helpers.sources import annotations, check, convert, objects, write_image, write_json
from mm_vitbackbones import limits
from mm_vitbackbones.errors import UserError

pytest.importorskip("mmdet")
pytestmark = pytest.mark.mmdet

OUTLINE = [5.0, 4.0, 25.0, 4.0, 25.0, 16.0, 5.0, 16.0]


def content(files: list[str], first: int = 0, segmentation: Any = None, **more: Any) -> dict[str, Any]:
    """A dog in each image; ids count from ``first``."""
    return {
        "images": [{"id": i + first, "file_name": name, "width": 40, "height": 30} for i, name in enumerate(files)],
        "categories": [{"id": first, "name": "cat"}, {"id": first + 1, "name": "dog"}],
        "annotations": [
            {
                "id": i + first,
                "image_id": i + first,
                "category_id": first + 1,
                "bbox": [5, 4, 20, 12],
                "area": 240,
                "iscrowd": 0,
                "segmentation": [OUTLINE] if segmentation is None else segmentation,
                **more,
            }
            for i in range(len(files))
        ],
    }


def cvat(root: Path, **more: Any) -> Path:
    files = [f"{i}.jpg" for i in range(5)]
    for name in files:
        write_image(root / "images/default" / name)
    made = content(files, first=1, attributes={"occluded": False}, **more)
    write_json(root / "annotations/instances_default.json", made)
    return root


def label_studio(root: Path) -> Path:
    files = [f"images\\{i}-photo.jpg" for i in range(5)]
    for name in files:
        write_image(root / name.replace("\\", "/"))
    write_json(root / "result.json", content(files, ignore=0))
    return root


def roboflow(root: Path) -> Path:
    for folder, count in (("train", 3), ("valid", 2), ("test", 1)):
        files = [f"{folder}_{i}.jpg" for i in range(count)]
        for name in files:
            write_image(root / folder / name)
        made = content(files, first=1)
        made["categories"] = [
            {"id": 0, "name": "animals", "supercategory": "none"},
            *(dict(each, supercategory="animals") for each in made["categories"]),
        ]
        write_json(root / folder / "_annotations.coco.json", made)
    return root


@pytest.mark.parametrize("source", [cvat, label_studio, roboflow])
def test_export_is_read(tmp_path: Path, source: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out = convert(source(tmp_path / "source"))
    for split in ("train", "val"):
        assert check(out, split, masks=True).kept == len(annotations(out, split)["images"])
        found = objects(out, split)
        assert [*found.values()] == [[("dog", [5, 4, 20, 12])]] * len(found)
        made = annotations(out, split)
        assert made["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        assert [each["segmentation"] for each in made["annotations"]] == [[OUTLINE]] * len(found)
    assert "--task instance" in capsys.readouterr().out


def test_roboflows_folders_are_the_splits(tmp_path: Path) -> None:
    out = convert(roboflow(tmp_path / "source"))
    assert [len(objects(out, split)) for split in ("train", "val", "test")] == [3, 2, 1]
    assert [*objects(out, "val")] == ["val/valid_0.jpg", "val/valid_1.jpg"]


@pytest.mark.parametrize(("arguments", "crowd"), [((), 0), (("--keep-crowds",), 1)])
def test_cvats_brush_masks_are_objects(
    tmp_path: Path, arguments: tuple[str, ...], crowd: int, capsys: pytest.CaptureFixture[str]
) -> None:
    out = convert(cvat(tmp_path / "source", segmentation=coco.runs(5, 4, 20, 12), iscrowd=1), *arguments)
    made = annotations(out)["annotations"]
    assert [each["iscrowd"] for each in made] == [crowd] * 4
    assert made[0]["area"] == 240
    assert ("that CVAT marks as crowds" in capsys.readouterr().out) == (crowd == 0)
    if not crowd:
        check(out, masks=True)


def test_crowds_of_others_stay(tmp_path: Path) -> None:
    root = label_studio(tmp_path / "source")
    made = content([f"images/{i}-photo.jpg" for i in range(5)], segmentation=coco.runs(5, 4, 20, 12), iscrowd=1)
    write_json(root / "result.json", made)
    assert {each["iscrowd"] for each in annotations(convert(root))["annotations"]} == {1}


def test_boxes_alone_are_for_detection(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = convert(cvat(tmp_path / "source", segmentation=[]))
    assert "--task detection" in capsys.readouterr().out
    assert "segmentation" not in annotations(out)["annotations"][0]
    assert check(out).kept == 4


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_masks_of_the_stored_image_are_turned_with_it(tmp_path: Path, orientation: int) -> None:
    root = tmp_path / "source"
    for i in range(2):
        write_image(root / f"{i}.jpg", orientation)
    made = content(["0.jpg", "1.jpg"])
    made["annotations"][1]["segmentation"] = coco.runs(5, 4, 20, 12)
    write_json(root / "a.json", made)
    out = convert(root, "--val", "0")
    outline, runs = annotations(out)["annotations"]
    assert check(out, masks=True).kept == 2
    assert outline["bbox"] == runs["bbox"]
    xs, ys = outline["segmentation"][0][::2], outline["segmentation"][0][1::2]
    assert [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)] == outline["bbox"]
    from pycocotools import mask

    rle = mask.frPyObjects(outline["segmentation"], 40, 30)
    np.testing.assert_array_equal(mask.decode(rle)[..., 0], mask.decode(runs["segmentation"]))


def change(made: dict[str, Any], **entries: Any) -> dict[str, Any]:
    made["annotations"][0] |= entries
    return made


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ({"category_id": 9}, "object of categories that are not listed"),
        ({"image_id": 9}, "object of images that are not listed"),
        ({"segmentation": coco.runs(0, 0, 5, 5) | {"size": [3, 3]}}, "object whose mask is not of the size"),
        ({"segmentation": [["a", 1, 2, 3, 4, 5]]}, "object whose segmentation is no list of numbers"),
        ({"segmentation": None, "bbox": None}, "object without a box"),
        ({"bbox": [1, 2, float("nan"), 3]}, "object with a coordinate that is no number"),
        ({"ignore": 1}, "object that are marked to be ignored"),
        ({"segmentation": [[1, 2, 3, 4]]}, "polygon of fewer than three points"),
        ({"category_id": {}}, "object of categories that are not listed"),
        ({"segmentation": {"size": [float("inf"), 40], "counts": "a"}}, "object whose mask is not of the size"),
        ({"segmentation": {"size": [30, 40], "counts": [-5, 1205]}}, "object whose mask is not of the size"),
        ({"keypoints": [1, 2, 2]}, "keypoint of objects, which stay"),
    ],
)
def test_what_mmdet_would_lose_is_left_out_and_reported(
    tmp_path: Path, entries: dict[str, Any], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = label_studio(tmp_path / "source")
    write_json(root / "result.json", change(content([f"images/{i}-photo.jpg" for i in range(5)]), **entries))
    check(convert(root, "--val", "0"))
    assert f"left out: 1 {why}" in capsys.readouterr().out


def test_source_without_training_images_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "source/valid/0.jpg")
    write_image(tmp_path / "source/valid/1.jpg")
    write_json(tmp_path / "source/valid/_annotations.coco.json", content(["0.jpg", "1.jpg"]))
    with pytest.raises(UserError, match=r"none for training: --val 0\.2 splits these"):
        convert(tmp_path / "source")
    assert len(objects(convert(tmp_path / "source", "--val", "0.5"))) == 1


@pytest.mark.parametrize("name", ["train/0.jpg", "0.jpg"])
def test_masks_next_to_the_json_are_no_images(tmp_path: Path, name: str) -> None:
    root = tmp_path / "source"
    image, mask = root / "images/train/0.jpg", root / "annotations/train/0.jpg"
    write_image(image)
    write_image(mask, size=(9, 9))
    write_json(root / "annotations/instances_train.json", content([name]))
    out = convert(root, "--val", "0", "--format", "coco")
    assert (out / "images/train/0.jpg").resolve() == image.resolve()


def test_categories_of_one_name_are_one_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = label_studio(tmp_path / "source")
    made = content([f"images/{i}-photo.jpg" for i in range(5)])
    made["categories"].append({"id": 7, "name": "dog"})
    write_json(root / "result.json", change(made, category_id=7))
    out = convert(root)
    assert [each["name"] for each in annotations(out)["categories"]] == ["cat", "dog"]
    assert check(out).kept == 4
    assert "1 category of the same name are one class" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "entry", "message"),
    [
        ("images", {"id": 0}, "several images have the id 0"),
        ("images", {"id": None}, "has not both an id and a file_name"),
        ("images", {"file_name": 3}, "has not both an id and a file_name"),
        ("annotations", {"image_id": []}, "an annotation has no image_id"),
        ("categories", {"name": None}, "has not both an id and a name"),
        ("categories", {"id": 0}, "the category id 0 stands for 'cat' and for 'dog'"),
    ],
)
def test_ids_that_are_not_clear_are_refused(tmp_path: Path, kind: str, entry: dict[str, Any], message: str) -> None:
    root = label_studio(tmp_path / "source")
    made = content([f"images/{i}-photo.jpg" for i in range(5)])
    made[kind][1] |= entry
    write_json(root / "result.json", made)
    with pytest.raises(UserError, match=message):
        convert(root)


@pytest.mark.parametrize("side", [None, "x", 0, -1, float("inf")])
def test_size_that_is_none_is_read_from_the_image(tmp_path: Path, side: Any) -> None:
    root = label_studio(tmp_path / "source")
    made = content([f"images/{i}-photo.jpg" for i in range(5)])
    made["images"][0]["width"] = side
    write_json(root / "result.json", made)
    assert {image["width"] for image in annotations(convert(root, "--val", "0"))["images"]} == {40}


def test_splits_with_other_ids_of_the_classes_agree(tmp_path: Path) -> None:
    root = roboflow(tmp_path / "source")
    other = content([f"valid_{i}.jpg" for i in range(2)], first=40)
    other["categories"].reverse()
    write_json(root / "valid/_annotations.coco.json", copy.deepcopy(other))
    out = convert(root)
    assert annotations(out, "val")["categories"] == annotations(out)["categories"]
    assert {label for found in objects(out, "val").values() for label, _ in found} == {"dog"}


def test_long_names_and_names_that_differ_by_case_have_files_of_their_own(tmp_path: Path) -> None:
    long = "x" * 245
    files = ["a.jpg", "A.png", f"b/{long}.jpg", f"c/{long}.jpg", "a.jpeg", "b/\u00e9.jpg", "c/e\u0301.jpg"]
    root = tmp_path / "source"
    for name in files:
        write_image(root / name)
    write_json(root / "a.json", content(files))
    out = convert(root, "--val", "0", "--copy")
    names = [image["file_name"] for image in annotations(out)["images"]]
    assert len(names) == len(files)
    assert len({unicodedata.normalize("NFC", Path(name).stem).casefold() for name in names}) == len(names)
    assert sorted(names) == sorted(f"train/{path.name}" for path in (out / "images/train").iterdir())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"bbox": [5, 4, -20, 12]}, "of a width or height below 0"),
        ({"bbox": [5, 4, 1e9, 12]}, "with a coordinate above 1e+06 pixels"),
        (
            {"segmentation": [[0, 0, 1e6, 1e6, 0, 1] * 8]},
            "whose polygons are longer than the limit of 10,000,000 pixels (MM_VITBACKBONES_LIMITS=10 multiplies it)",
        ),
        ({"segmentation": {"size": [30, 40], "counts": [5, 7]}}, "whose mask is not of the size of their image"),
        ({"segmentation": {"size": [30, 40], "counts": "abc"}}, "whose mask is not of the size of their image"),
        ({"segmentation": {"size": [10**9, 10**9], "counts": "abc"}}, "whose mask is not of the size of their image"),
        ({"segmentation": [[1, 10**400, 2, 3, 4, 5]]}, "whose segmentation is no list of numbers"),
    ],
)
def test_an_absurd_object_is_left_out(
    tmp_path: Path, change: Any, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "source"
    for name in ("a.jpg", "b.jpg"):
        write_image(root / name)
    made = content(["a.jpg", "b.jpg"])
    made["annotations"][0].update(change)
    write_json(root / "a.json", made)
    out = convert(root, "--val", "0")
    assert len(annotations(out)["annotations"]) == 1
    assert f"left out: 1 object {why} (" in capsys.readouterr().out


def test_a_key_that_is_there_twice_and_a_large_image_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "source"
    write_image(root / "a.jpg")
    text = json.dumps(content(["a.jpg"]))
    (root / "a.json").write_text(text.replace('"area"', '"bbox": [1, 1, 2, 2], "area"'))
    with pytest.raises(UserError, match=r"a.json has an entry with the key 'bbox' twice"):
        convert(root)
    (root / "a.json").write_text(text)
    monkeypatch.setattr(limits, "PIXELS", limits.Limit(1000, "pixels"))
    with pytest.raises(UserError, match=r"a.jpg: it has 1,200 pixels, and the limit is 1,000;"):
        convert(root)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
