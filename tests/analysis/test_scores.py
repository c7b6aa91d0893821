"""F1, calibration, confusion, and the order of images."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.detections import found_of, random_set, truth_of

pytest.importorskip("pycocotools")

from mm_vitbackbones.analysis.detection import Detection
from mm_vitbackbones.analysis.scores import calibration, confusion, f1_curve, judge, ranked

TRUTH = truth_of(
    [(1, 0, [10, 10, 40, 40]), (1, 1, [100, 10, 40, 40]), (2, 0, [10, 10, 40, 40]), (3, 1, [0, 0, 30, 30])], 4, "ab"
)
FOUND = found_of(
    [
        (1, 0, 0.9, [10, 10, 40, 40]),  # right
        (1, 0, 0.8, [102, 10, 40, 40]),  # an object of class b
        (2, 0, 0.6, [12, 10, 40, 40]),  # right
        (2, 1, 0.6, [150, 150, 20, 20]),  # background
        (3, 1, 0.2, [0, 0, 30, 30]),  # right, with a low score
    ]
)


def test_f1_is_best_where_a_loop_over_all_scores_finds_it():
    one = Detection(*random_set(1)).matches[0]
    curve = f1_curve([one])
    objects = int(one.objects.sum())
    by_hand = {}
    for score in np.unique(one.scores):
        shown = one.scores >= score
        right = int(one.hit[0][shown].sum())
        by_hand[float(score)] = 2 * right / (int(shown.sum()) + objects)
    assert dict(zip(curve.scores.tolist(), curve.f1.tolist(), strict=True)) == pytest.approx(by_hand)
    assert curve.f1[curve.best] == max(by_hand.values())
    assert curve.precision * curve.recall * 2 == pytest.approx(curve.f1 * (curve.precision + curve.recall))


def test_f1_of_equal_scores_is_one_point():
    truth = truth_of([(1, 0, [0, 0, 10, 10])], 1, "a")
    found = found_of([(1, 0, 0.5, [0, 0, 10, 10]), (1, 0, 0.5, [50, 50, 10, 10])])
    curve = f1_curve(Detection(truth, found).matches)
    assert (curve.scores.tolist(), curve.f1.tolist()) == ([0.5], [2 / 3])
    assert f1_curve(Detection(truth, []).matches).best is None


def test_confusion_counts_each_object_and_detection_once():
    images = Detection(TRUTH, FOUND).images
    assert confusion(images, 2, 0.5).tolist() == [[2, 0, 0], [1, 0, 1], [0, 1, 0]]
    assert confusion(images, 2, 0.0).tolist() == [[2, 0, 0], [1, 1, 0], [0, 1, 0]]
    truth, found = random_set(3)
    run = Detection(truth, found)
    table = confusion(run.images, 3, 0.0)
    assert table[:3].sum() == len(truth["annotations"])
    assert table[:, :3].sum() == len(found)


def test_a_detection_of_another_class_takes_no_object_from_a_right_one():
    found = found_of([(1, 1, 0.9, [10, 10, 40, 40]), (1, 0, 0.5, [14, 10, 40, 40])])
    table = confusion(Detection(TRUTH, found).images, 2, 0.0)
    assert table[0].tolist() == [1, 0, 1]  # of two objects of class a, the one in image 2 has nothing
    assert table[2].tolist() == [0, 1, 0]


def test_images_are_ordered_by_what_is_wrong_in_them():
    order = ranked([judge(image, 0.5) for image in Detection(TRUTH, FOUND).images])
    assert [one.image.key for one in order] == [3, 1, 2, 4]
    assert [(int(one.right.sum()), int(one.false.sum()), int(one.missed.sum())) for one in order] == [
        (0, 0, 1),
        (1, 1, 1),
        (1, 1, 0),
        (0, 0, 0),
    ]
    assert [one.f1 for one in order] == pytest.approx([0, 0.5, 2 / 3, 1])


def test_calibration_compares_scores_with_what_is_right():
    found = calibration(Detection(TRUTH, FOUND).matches)
    assert found.counts.tolist() == [0, 0, 1, 0, 0, 0, 2, 0, 1, 1]
    assert found.right[[2, 6, 8, 9]].tolist() == [1, 0.5, 0, 1]
    assert found.scores[[2, 6, 8, 9]] == pytest.approx([0.2, 0.6, 0.8, 0.9])
    assert found.error == pytest.approx((0.8 + 2 * 0.1 + 0.8 + 0.1) / 5)
    assert np.isnan(calibration(Detection(TRUTH, []).matches).error)
