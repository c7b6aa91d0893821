"""Overlaps of boxes in plain PyTorch."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from helpers.operators import over_plain, random_boxes
from mm_vitbackbones.mmcv_ops import bbox as plain


@pytest.fixture
def mmcv_bbox(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return over_plain("bbox", monkeypatch)


FIRST = torch.tensor([[0.0, 0, 10, 10], [10, 10, 20, 20], [32, 32, 38, 42]])
SECOND = torch.tensor([[0.0, 0, 10, 20], [0, 10, 10, 19], [10, 10, 20, 20]])


def test_iou_is_the_intersection_over_the_union(mmcv_bbox):
    expected = torch.tensor([[0.5, 0, 0], [0, 0, 1], [0, 0, 0]])
    assert torch.equal(mmcv_bbox.bbox_overlaps(FIRST, SECOND), expected)
    assert torch.equal(mmcv_bbox.bbox_overlaps(FIRST, SECOND, aligned=True), expected.diag())


def test_iof_is_the_intersection_over_the_first_box(mmcv_bbox):
    assert torch.equal(mmcv_bbox.bbox_overlaps(SECOND, FIRST, mode="iof")[0], torch.tensor([0.5, 0, 0]))
    assert torch.equal(mmcv_bbox.bbox_overlaps(FIRST, SECOND, mode="iof")[0], torch.tensor([1.0, 0, 0]))


def test_with_an_offset_a_box_covers_its_last_pixel(mmcv_bbox):
    # 11 x 11 and 11 x 10 pixels, which share a row of 11.
    overlap = mmcv_bbox.bbox_overlaps(FIRST[:1], SECOND[1:2], offset=1)
    assert overlap.item() == pytest.approx(11 / (121 + 110 - 11))


@pytest.mark.parametrize("mode", ["iou", "iof"])
def test_blocks_and_pairs_agree_with_mmcvs_own_definition(mode, mmcv_bbox, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    first, second = random_boxes(23, generator), random_boxes(31, generator)
    expected = mmcv_bbox._bbox_overlaps_cpu(first, second, mode=mode, offset=1)
    monkeypatch.setattr(plain, "BLOCK", 100)
    torch.testing.assert_close(mmcv_bbox.bbox_overlaps(first, second, mode=mode, offset=1), expected)
    torch.testing.assert_close(
        mmcv_bbox.bbox_overlaps(first, second[:23], mode=mode, aligned=True, offset=1), expected[:, :23].diag()
    )


def test_large_boxes_in_half_precision_do_not_overflow(mmcv_bbox):
    boxes = torch.tensor([[0, 0, 1024, 1024], [0, 0, 1024, 512]]).half()
    assert mmcv_bbox.bbox_overlaps(boxes, boxes).tolist() == [[1, 0.5], [0.5, 1]]


def test_no_boxes_have_no_overlaps(mmcv_bbox):
    assert mmcv_bbox.bbox_overlaps(torch.empty(0, 4), FIRST).shape == (0, 3)
    plain.bbox_overlaps(FIRST, torch.empty(0, 4), torch.empty(3, 0), mode=0, aligned=False, offset=0)
