"""Intervals of differences, from images that are drawn again and again."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from helpers.detections import random_set

pytest.importorskip("pycocotools")

from mm_vitbackbones.analysis.comparing import ap_of, bootstrap, iou_of
from mm_vitbackbones.analysis.detection import Detection
from mm_vitbackbones.analysis.segmentation import Collector


def test_weights_of_images_are_as_if_the_images_were_there_so_often():
    truth, found = random_set(3, images=5)
    times = np.array([2, 0, 1, 3, 1])
    repeated = dict(truth, images=[], annotations=[])
    results = []
    for place, count in enumerate(times):
        for copy_number in range(count):
            key = 10 * copy_number + place + 1
            repeated["images"].append({**truth["images"][place], "id": key})
            for listed, into in ((truth["annotations"], repeated["annotations"]), (found, results)):
                into += [{**each, "image_id": key} for each in copy.deepcopy(listed) if each["image_id"] == place + 1]
    weighted = ap_of(Detection(truth, found))(times.astype(float))
    assert weighted == pytest.approx(Detection(repeated, results).precision[..., 0].mean(axis=0), abs=1e-9)


def test_a_run_against_itself_has_no_difference():
    run = ap_of(Detection(*random_set(0)))
    result = bootstrap(run, run, 12, 20)
    assert result.first.tolist() == result.second.tolist()
    for values in (result.difference, result.low, result.high):
        assert values.tolist() == [0] * 4


def test_the_interval_is_that_of_the_mean_where_this_is_known():
    """Of the mean of 400 numbers with deviation 1, the interval is about 1.96 / 20 to either side."""
    rng = np.random.default_rng(0)
    values, shift = rng.normal(size=400), rng.normal(0.5, 1, 400)
    first, second = (
        lambda times, each=each: np.array([times @ each / times.sum()]) for each in (values, values + shift)
    )
    result = bootstrap(first, second, 400, 2000)
    assert result.difference[0] == pytest.approx(shift.mean())
    half = 1.96 * shift.std() / 20
    assert result.low[0] == pytest.approx(shift.mean() - half, abs=0.1 * half)
    assert result.high[0] == pytest.approx(shift.mean() + half, abs=0.1 * half)


def test_a_class_that_few_images_have_is_measured_where_it_is_drawn():
    collector = Collector(["a", "b"])
    for number in range(10):
        truth = np.full((4, 4), int(number == 0), np.uint8)
        collector.add(str(number), np.zeros((4, 4), np.uint8), truth)
    run = iou_of(collector.result())
    result = bootstrap(run, run, 10, 50)
    assert result.first[:2] == pytest.approx([0.9, 0])
    assert not np.isnan(result.low).any()
