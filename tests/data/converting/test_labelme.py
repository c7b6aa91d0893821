"""labelme's JSON files."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.sources import annotations, check, convert, objects, write_image, write_json, write_text

pytest.importorskip("mmdet")
pytestmark = pytest.mark.mmdet

POLYGON = {"label": "dog", "points": [[5, 4], [25, 4], [25, 16]], "shape_type": "polygon", "group_id": None}


def png(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def labelled(name: str, *shapes: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"shapes": [*shapes], "imagePath": name, "imageData": None, "imageWidth": 40, "imageHeight": 30, **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "labelme"
    for i in range(5):
        write_image(root / f"{i}.jpg")
        write_json(root / f"{i}.json", labelled(f"..\\photos\\{i}.jpg", POLYGON))
    return root


def test_polygons_become_masks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = convert(folder)
    assert check(out, masks=True).kept == 4
    assert check(out, "val", masks=True).kept == 1
    first = annotations(out)["annotations"][0]
    assert (first["bbox"], first["segmentation"]) == ([5, 4, 20, 12], [[5, 4, 25, 4, 25, 16]])
    assert "--task instance" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shape", "box", "outlined"),
    [
        ({"shape_type": "rectangle", "points": [[25, 16], [5, 4]]}, [5, 4, 20, 12], False),
        ({"shape_type": "circle", "points": [[20, 15], [20, 20]]}, [15, 10, 10, 10], True),
        (
            {"shape_type": "mask", "points": [[5, 4], [24, 15]], "mask": png(np.ones((12, 20), bool))},
            [5, 4, 20, 12],
            True,
        ),
    ],
)
def test_shape_of_another_kind_is_read(folder: Path, shape: dict[str, Any], box: list[float], outlined: bool) -> None:
    write_json(folder / "0.json", labelled("0.jpg", {"label": "cat", **shape}))
    out = convert(folder, "--val", "0")
    assert objects(out)["train/0.jpg"] == [("cat", box)]
    assert ("segmentation" in annotations(out)["annotations"][0]) == outlined
    check(out)


def test_shapes_of_a_group_are_one_object(folder: Path) -> None:
    parts = [dict(POLYGON, group_id=3), dict(POLYGON, group_id=3, points=[[30, 20], [38, 20], [38, 28]])]
    write_json(folder / "0.json", labelled("0.jpg", *parts, dict(POLYGON, group_id=4)))
    out = convert(folder, "--val", "0")
    assert objects(out)["train/0.jpg"] == [("dog", [5, 4, 33, 24]), ("dog", [5, 4, 20, 12])]
    assert [len(each["segmentation"]) for each in annotations(out)["annotations"][:2]] == [2, 1]


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ({"shape_type": "line", "points": [[1, 2], [9, 9]]}, "of kind line with 2 points, which have no area"),
        ({"shape_type": "point", "points": [[1, 2]]}, "of kind point with 1 points"),
        ({"label": "__ignore__"}, "with the label __ignore__"),
        ({"label": ""}, "without a label"),
        ({"points": [[1, "x"]]}, "whose points are no pairs of numbers"),
        ({"shape_type": "mask", "points": [[1, 2], [9, 9]], "mask": "?"}, "of kind mask whose pixels cannot be read"),
    ],
)
def test_shape_without_an_area_is_left_out_and_reported(
    folder: Path, shape: dict[str, Any], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(folder / "0.json", labelled("0.jpg", POLYGON, {**POLYGON, **shape}))
    out = convert(folder, "--val", "0")
    assert len(objects(out)["train/0.jpg"]) == 1
    said = capsys.readouterr().out
    assert f"left out: 1 shape {why}" in said
    assert "(0.json, shape 2)" in said


def test_image_inside_of_the_json_is_written(folder: Path) -> None:
    (folder / "0.jpg").unlink()
    inside = png(np.full((30, 40, 3), 70, np.uint8))
    write_json(folder / "0.json", labelled("gone.png", POLYGON, imageData=inside))
    out = convert(folder, "--val", "0")
    assert objects(out)["train/0.png"] == [("dog", [5, 4, 20, 12])]
    assert check(out, masks=True).kept == 5


def test_order_of_the_labels_file_is_kept(folder: Path) -> None:
    write_text(folder / "labels.txt", "__ignore__\n_background_\nfish\ndog\ncat\n")
    assert [each["name"] for each in annotations(convert(folder))["categories"]] == ["fish", "dog", "cat"]


def test_image_and_json_without_the_other_are_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "0.jpg").unlink()
    (folder / "1.json").unlink()
    convert(folder)
    said = capsys.readouterr().out
    assert "left out: 1 JSON file without an image (0.json names" in said
    assert "left out: 1 image without a JSON file (1.jpg)" in said
