"""Numbers of detection agree with pycocotools."""

from __future__ import annotations

import copy
import io
from contextlib import redirect_stdout

import numpy as np
import pytest

from helpers.detections import found_of, random_set, truth_of

pytest.importorskip("pycocotools")

from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mm_vitbackbones.analysis.detection import Detection, average_precision


def summarised(truth, found, kind="bbox"):
    """The twelve numbers of pycocotools, of annotations whose ids are from 1."""
    known = COCO()
    known.dataset = copy.deepcopy(truth)
    for each in known.dataset["annotations"]:
        each["id"] += 1
    with redirect_stdout(io.StringIO()):
        known.createIndex()
        evaluation = COCOeval(known, known.loadRes(copy.deepcopy(found)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize("seed", range(3))
def test_ap_of_all_sizes_and_thresholds_is_pycocotools(seed):
    truth, found = random_set(seed)
    before = copy.deepcopy((truth, found))
    run = Detection(truth, found)
    ap = run.precision
    ours = [np.nanmean(ap[..., 0]), np.nanmean(ap[0, :, 0]), np.nanmean(ap[5, :, 0])]
    ours += [np.nanmean(ap[..., 1]), np.nanmean(ap[..., 2])]
    assert ours == pytest.approx(summarised(truth, found)[:5], abs=1e-9)
    assert np.nanmean(run.recall[..., 0]) == pytest.approx(summarised(truth, found)[8], abs=1e-9)
    assert (truth, found) == before


@pytest.mark.parametrize("seed", range(3))
def test_own_ap_of_a_class_is_pycocotools(seed):
    run = Detection(*random_set(seed))
    for label, one in enumerate(run.matches):
        for place in range(10):
            own = average_precision(one.hit[place], one.counted[place].astype(float), one.objects.sum())
            assert own == pytest.approx(run.precision[place, label, 0], abs=1e-9)


def test_labels_keep_the_order_of_the_categories_that_are_given():
    truth, found = random_set(5)
    straight = Detection(truth, found)
    turned = Detection(truth, found, [3, 1, 2])
    assert turned.classes == ["c", "a", "b"]
    for values in ("precision", "recall", "curves", "counts"):
        axis = 2 if values == "curves" else 0 if values == "counts" else 1
        assert np.array_equal(
            getattr(turned, values), np.take(getattr(straight, values), [2, 0, 1], axis), equal_nan=True
        )
    assert [int(one.objects.sum()) for one in turned.matches] == [*turned.counts[:, 0]]

    def key(image):
        return sorted(zip(image.truth_labels, map(tuple, image.truth_boxes), strict=True))

    moved = {0: 1, 1: 2, 2: 0}
    for one, other in zip(straight.images, turned.images, strict=True):
        assert key(other) == sorted((moved[label], box) for label, box in key(one))


def test_a_crowd_is_no_object_and_makes_nothing_false():
    truth = truth_of([(1, 0, [0, 0, 100, 100]), (1, 0, [150, 150, 20, 20])], 1, "a")
    truth["annotations"][0]["iscrowd"] = 1
    run = Detection(truth, found_of([(1, 0, 0.9, [10, 10, 20, 20]), (1, 0, 0.8, [150, 150, 20, 20])]))
    assert run.counts[0, 0] == 1
    assert run.precision[0, 0, 0] == pytest.approx(1)
    assert run.images[0].ignored.tolist() == [True, False]


def test_masks_are_matched_and_measured_by_their_pixels():
    def code(x, y, side):
        mask = np.zeros((200, 200), np.uint8, order="F")
        mask[y : y + side, x : x + side] = 1
        return coco_mask.encode(mask)

    truth = truth_of([(1, 0, [10, 10, 100, 100])], 1, "a")
    truth["annotations"][0] |= {"segmentation": code(10, 10, 20), "area": 400}
    found = [dict(image_id=1, category_id=1, score=0.9, bbox=[10, 10, 100, 100], segmentation=code(12, 10, 20))]
    run = Detection(truth, found, kind="segm")
    assert run.images[0].iou[0, 0] == pytest.approx(18 * 20 / (2 * 400 - 18 * 20))
    assert run.counts[0].tolist() == [1, 1, 0, 0]
    assert run.precision[:, 0, 1].mean() == pytest.approx(0.7)  # IoU 0.818: found at 0.5 to 0.8


def test_without_detections_all_is_zero_and_without_objects_nothing_is_measured():
    truth = truth_of([(1, 0, [0, 0, 10, 10])], 2, "ab")
    run = Detection(truth, [])
    assert run.precision[:, 0, 0].tolist() == [0] * 10
    assert np.isnan(run.precision[:, 1]).all()
    assert [len(image.labels) for image in run.images] == [0, 0]
    assert np.isnan(average_precision(np.zeros(0, bool), np.zeros(0), 0))
