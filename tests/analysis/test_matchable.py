"""Which objects an anchor fits."""

from __future__ import annotations

import numpy as np
import pytest

from mm_vitbackbones.analysis.matchable import SIDES, Level, best_iou, input_scale, levels_of, tabulate


@pytest.mark.mmdet
def test_best_iou_is_that_of_all_anchors_of_mmdet():
    pytest.importorskip("mmdet")
    from mmdet.models.task_modules import AnchorGenerator
    from mmdet.structures.bbox import bbox_overlaps

    generator = AnchorGenerator(strides=[8, 16], ratios=[0.5, 1, 2], octave_base_scale=4, scales_per_octave=2)
    rng = np.random.default_rng(0)
    start = rng.uniform(-5, 120, (60, 2))
    boxes = np.concatenate([start, start + rng.uniform(3, 90, (60, 2))], axis=1)
    import torch

    anchors = torch.cat(generator.grid_priors([(12, 16), (6, 8)], device="cpu"))
    theirs = bbox_overlaps(torch.from_numpy(boxes).float(), anchors).max(dim=1).values.numpy()
    assert best_iou(boxes, (96, 128), levels_of(generator)) == pytest.approx(theirs, abs=1e-5)


def test_a_box_that_is_an_anchor_fits():
    level = Level((8.0, 8.0), np.array([[-16.0, -16, 16, 16]]))
    boxes = np.array([[8.0, 16, 40, 48], [8, 16, 24, 32], [200, 200, 232, 232]])
    assert best_iou(boxes, (64, 64), [level]) == pytest.approx([1, 0.25, 0])


@pytest.mark.parametrize(
    ("scale", "keep", "expected"),
    [(None, True, (1, 1)), ((1333, 800), True, (2, 2)), ((800, 400), False, (1, 1)), ((500, 1333), True, (1.25, 1.25))],
)
def test_the_test_scale_is_mmcvs(scale, keep, expected):
    assert input_scale(400, 800 if scale == (800, 400) or scale is None else 400, scale, keep) == pytest.approx(
        expected
    )


def test_objects_are_counted_by_side_and_aspect():
    boxes = np.array([[0, 0, 8, 8], [0, 0, 7, 7], [0, 0, 40, 10], [0, 0, 1000, 1000.0]])
    table = tabulate(boxes, np.array([True, False, True, True]))
    assert table.counts.sum() == 4
    assert [int(row.sum()) for row in table.counts] == [1, 1, 1, 0, 0, 0, 1]
    assert table.counts[2].tolist() == [0, 0, 0, 0, 1]
    assert table.matched.sum() == 3
    assert table.share == 0.75
    assert len(SIDES) == 8
