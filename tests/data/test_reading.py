"""Images are read as the pipeline of a data set reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from PIL import Image

from mm_vitbackbones.data.reading import ImageReader, UnreadableImage
from mm_vitbackbones.errors import UserError

pytest.importorskip("mmcv")

LOAD = {"type": "mmcv.LoadImageFromFile"}


def test_image_is_turned_as_the_loader_turns_it(tmp_path: Path) -> None:
    init_default_scope("mmengine")
    image, exif = Image.new("RGB", (64, 32)), Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image.save(tmp_path / "turned.jpg", exif=exif)
    info = {"img_path": str(tmp_path / "turned.jpg")}
    assert ImageReader([LOAD])(info).shape == (64, 32, 3)
    assert ImageReader([{**LOAD, "color_type": "color_ignore_orientation"}])(info).shape == (32, 64, 3)


def test_a_loading_transform_of_the_users_own_is_asked_and_later_steps_are_not_built() -> None:
    bands = np.zeros((4, 6, 5), np.float32)
    reader = ImageReader([lambda results: results, lambda results: {**results, "img": bands}, {"type": "NoSuchStep"}])
    assert reader({"img_path": "a.npy"}) is bands


@pytest.mark.parametrize(
    ("content", "why"), [(None, "No such file"), (b"", "."), (b"no image", "failed to load image")]
)
def test_unreadable_image_is_reported_with_the_reason(tmp_path: Path, content: bytes | None, why: str) -> None:
    init_default_scope("mmengine")
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=why):
        ImageReader([LOAD])({"img_path": str(path)})


def test_pipeline_that_loads_nothing_is_reported() -> None:
    with pytest.raises(UnreadableImage, match="no step of its pipeline loads an image"):
        ImageReader([lambda results: results])({})
    with pytest.raises(UnreadableImage, match="gives nothing"):
        ImageReader([lambda results: None])({})


def test_values_are_those_after_the_last_step_of_the_users_own() -> None:
    def load(results: dict) -> dict:
        return {**results, "img": np.ones((4, 6, 3), np.float32)}

    def scale(results: dict) -> dict:
        results["img"] *= 255
        return results

    reader = ImageReader([load, scale])
    assert reader({"img_path": "a"}).max() == 1
    assert reader({"img_path": "a"}, as_used=True).max() == 255
    image, results = reader.whole({"img_path": "a"})
    assert image.max() == 1  # as loaded, whatever is written into it later
    assert results["img"].max() == 255


def test_a_step_that_needs_ground_truth_is_left_out_where_there_is_none() -> None:
    def load(results: dict) -> dict:
        return {**results, "img": np.ones((4, 6, 3), np.float32)}

    def annotate(results: dict) -> dict:
        results["seg_fields"].append("gt_seg_map")
        return {**results, "gt_seg_map": np.load(results["seg_map_path"])}

    def fail(results: dict) -> dict:
        return results["other"]

    _, results = ImageReader([load, annotate]).whole({"img_path": "a"})
    assert "gt_seg_map" not in results
    info = {"img_path": "a", "seg_map_path": "no_such.npy", "seg_fields": []}
    with pytest.raises(UnreadableImage, match="No such file"):
        ImageReader([load, annotate]).whole(info)
    assert info["seg_fields"] == []  # the entry stays as it is
    with pytest.raises(UnreadableImage, match="KeyError: 'other'"):
        ImageReader([load, fail]).whole({"img_path": "a"})


def test_a_step_with_a_wrong_argument_is_reported() -> None:
    init_default_scope("mmengine")
    with pytest.raises(UserError, match=r"a step of a pipeline, .*'colour': 'red'.* cannot be built: TypeError: "):
        ImageReader([{**LOAD, "colour": "red"}])({"img_path": "a"})
