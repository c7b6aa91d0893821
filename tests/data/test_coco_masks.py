"""What is said of a mask is what mmdet makes of it, and pycocotools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helpers.coco import HEIGHT, WIDTH, compressed, rectangle, runs
from mm_vitbackbones.data import coco_masks

pytest.importorskip("mmdet")

from mmdet.datasets.transforms import LoadAnnotations
from pycocotools import mask as pycoco
from pycocotools.coco import COCO

pytestmark = pytest.mark.mmdet

SIZE = (HEIGHT, WIDTH)
GOOD = rectangle(2, 3, 8, 9)
HEXAGON = [2, 3, 8, 3, 9, 6, 8, 9, 2, 9, 1, 6]
PAIRS = [[2, 3], [8, 3], [9, 6], [8, 9], [2, 9], [1, 6]]
TEXT = compressed(2, 3, 8, 9)

USED, LEFT_OUT, REFUSED = "used", "left out", "refused"

CASES: dict[str, tuple[Any, str, str]] = {
    # what mmdet makes of it with poly2mask, and without
    "a polygon": ([GOOD], USED, USED),
    "two polygons": ([GOOD, HEXAGON], USED, USED),
    "numbers as text": ([[str(x) for x in GOOD]], USED, REFUSED),
    "two points": ([[2, 3, 8, 9]], LEFT_OUT, LEFT_OUT),
    "odd": ([GOOD[:-1]], LEFT_OUT, LEFT_OUT),
    "two points, and a polygon": ([[2, 3, 8, 9], GOOD], USED, USED),
    "four points as lists": ([PAIRS[:4]], LEFT_OUT, LEFT_OUT),
    "points in place of polygons": (PAIRS, LEFT_OUT, LEFT_OUT),
    "a flat list": (GOOD, REFUSED, REFUSED),
    "a list of RLE": ([TEXT], LEFT_OUT, LEFT_OUT),
    "a list of nothing": ([None], REFUSED, REFUSED),
    "words": ([["a"] * 6], REFUSED, REFUSED),
    "a word": (["abcdef"], REFUSED, REFUSED),
    "nothing": ([], REFUSED, REFUSED),
    "null": (None, REFUSED, REFUSED),
    "text": ("abc", REFUSED, LEFT_OUT),
    "RLE": (runs(2, 3, 8, 9), USED, LEFT_OUT),
    "compressed RLE": (TEXT, USED, LEFT_OUT),
    "RLE without a size": ({"counts": TEXT["counts"]}, LEFT_OUT, LEFT_OUT),
    "RLE without counts": ({"size": TEXT["size"]}, LEFT_OUT, LEFT_OUT),
    "RLE of another size": (dict(TEXT, size=[10, 10]), REFUSED, LEFT_OUT),
    "RLE of text as size": (dict(TEXT, size="ab"), REFUSED, LEFT_OUT),
    "RLE that is no RLE": (dict(TEXT, counts="junk"), REFUSED, LEFT_OUT),
    "RLE that is no ASCII": (dict(TEXT, counts="ü"), REFUSED, LEFT_OUT),
    "RLE that is too long": (dict(TEXT, counts=TEXT["counts"] + "0000"), REFUSED, LEFT_OUT),
    "RLE with a negative run": (dict(TEXT, counts=[600, -60, 660]), REFUSED, LEFT_OUT),
    "RLE with null": (dict(TEXT, counts=[600, None, 600]), REFUSED, LEFT_OUT),
}


BROKEN = ("RLE that is no RLE", "RLE that is no ASCII", "RLE that is too long", "RLE with a negative run")
"""pycocotools decodes these beyond its memory, which ends a process now or later: they are not given to it."""


def load(segmentation: Any, poly2mask: bool) -> str:
    """What mmdet's loader does."""
    instance = {"bbox": [2, 3, 10, 12], "bbox_label": 0, "ignore_flag": 0}
    if segmentation:  # by mmdet's CocoDataset
        instance["mask"] = segmentation
    try:
        loaded = LoadAnnotations(with_mask=True, poly2mask=poly2mask)({"instances": [instance], "ori_shape": SIZE})
        loaded["gt_masks"].resize(SIZE)
    except Exception:
        return REFUSED
    return LEFT_OUT if loaded["gt_ignore_flags"][0] else USED


@pytest.mark.parametrize("poly2mask", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_mmdet_uses_leaves_out_or_fails_as_is_said(case: str, poly2mask: bool) -> None:
    segmentation, *expected = CASES[case]
    why, is_left_out = coco_masks.judge(segmentation, SIZE, poly2mask)
    said = USED if not why else LEFT_OUT if is_left_out else REFUSED
    assert said == expected[0 if poly2mask else 1]
    if not (poly2mask and case in BROKEN):
        assert said == load(segmentation, poly2mask)


@pytest.mark.parametrize(
    ("segmentation", "why"),
    [
        (dict(TEXT, size=[WIDTH, HEIGHT]), coco_masks.OTHER_SIZE),  # mmdet folds the pixels into other rows
        (dict(TEXT, counts=TEXT["counts"][:-1]), coco_masks.BROKEN),  # pycocotools leaves pixels as they are in memory
        (dict(TEXT, counts=[600, 60]), coco_masks.BROKEN),
        (dict(TEXT, counts=[]), coco_masks.BROKEN),
        (dict(TEXT, counts=""), coco_masks.BROKEN),
        ([PAIRS], coco_masks.POINTS),  # with poly2mask=False, mmdet scales points in place of coordinates
        ([[2, 3, float("nan"), 3, 8, 9]], coco_masks.NO_NUMBERS),  # these would fill the memory
        ([[2, 3, 1e30, 3, 8, 9]], coco_masks.NO_NUMBERS),
        ([[2, 3, None, 3, 8, 9]], coco_masks.NO_NUMBERS),
    ],
)
def test_masks_of_other_pixels_are_refused(segmentation: Any, why: str) -> None:
    assert coco_masks.judge(segmentation, SIZE) == (why, False)
    assert coco_masks.judge_for_metric(segmentation, SIZE) == why


@pytest.mark.parametrize("case", CASES)
def test_what_pycocotools_cannot_read_is_found(case: str) -> None:
    segmentation = CASES[case][0]
    truth = COCO()
    truth.imgs = {0: {"height": HEIGHT, "width": WIDTH}}
    try:
        drawn = truth.annToMask({"image_id": 0, "segmentation": segmentation})
        reads = drawn.shape == SIZE and case != "odd"  # it takes as many points as are whole
    except Exception:
        reads = False
    assert (coco_masks.judge_for_metric(segmentation, SIZE) == "") == reads


def test_polygons_that_are_left_out_of_masks_are_counted() -> None:
    assert coco_masks.lost_polygons([GOOD, [2, 3, 8, 9], GOOD[:-1]]) == 2
    assert coco_masks.lost_polygons([GOOD]) == coco_masks.lost_polygons(TEXT) == 0


@pytest.mark.parametrize("seed", range(3))
def test_runs_are_decoded_as_they_were_encoded(seed: int) -> None:
    mask = np.random.default_rng(seed).random((200, 300)) < (0.5, 0.001, 0.9)[seed]
    text = pycoco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    found = coco_masks.decode_counts(text)
    assert (np.repeat(np.arange(len(found)) % 2, found) == mask.T.ravel()).all()


@pytest.mark.parametrize("text", ["", "a" * 9, "o", "P" * 9 + "0", "\x1f"])
def test_what_is_no_compressed_rle_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no compressed RLE|more than 32 bits"):
        coco_masks.decode_counts(text)


def test_the_step_that_loads_masks_is_found_wherever_it_is() -> None:
    step = dict(type="mmdet.LoadAnnotations", with_mask=True)
    assert coco_masks.load_annotations([dict(type="LoadImageFromFile"), step]) is step
    assert coco_masks.load_annotations([dict(type="RandomChoice", transforms=[[], [step]])]) is step
    assert coco_masks.load_annotations([dict(step, type=LoadAnnotations)]) is not None
    assert (
        coco_masks.load_annotations([dict(step, with_mask=False), dict(step, type="LoadPanopticAnnotations")]) is None
    )
    assert coco_masks.load_annotations(None) is None
