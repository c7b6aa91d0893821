"""TIDE's types of errors, by the paper's definitions, and what fixing them gives, by an evaluation of fixed data."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.detections import found_of, random_set, truth_of

pytest.importorskip("pycocotools")

from mm_vitbackbones.analysis.detection import Detection
from mm_vitbackbones.analysis.tide import ERRORS, faults, tide

FOUR = truth_of(
    [(1, 0, [10, 10, 40, 40]), (1, 0, [100, 10, 40, 40]), (1, 1, [10, 100, 40, 40]), (1, 1, [100, 100, 40, 40])],
    1,
    "ab",
)
"""Two objects of class a above, two of class b below."""


def kinds(*detections):
    """The names of the errors of detections of one image, in the order of their scores; and the missed objects."""
    (image,) = Detection(FOUR, found_of([(1, *each) for each in detections])).images
    found = faults(image)
    names = ["" if kind < 0 else ERRORS[kind] for kind in found.kinds]
    return names, sorted(image.truth_ids[found.missed])


def test_four_boxes_have_the_errors_of_the_definitions():
    names, missed = kinds(
        (0, 0.9, [10, 10, 40, 40]),  # finds the first
        (0, 0.8, [12, 10, 40, 40]),  # again
        (0, 0.7, [120, 10, 40, 40]),  # IoU 1/3 with the second
        (0, 0.6, [10, 102, 40, 40]),  # on the third, which is of class b
    )
    assert names == ["", "duplicate", "location", "class"]
    assert missed == [3]


def test_the_other_types():
    names, missed = kinds(
        (0, 0.9, [30, 100, 40, 40]),  # IoU 1/3 with an object of class b
        (1, 0.8, [150, 60, 30, 30]),  # near nothing
        (1, 0.7, [100, 100, 40, 40]),  # finds the fourth
        (1, 0.6, [136, 100, 40, 40]),  # IoU 4/76 with it
    )
    assert names == ["both", "background", "", "background"]
    assert missed == [0, 1, 2]


@pytest.mark.parametrize(
    ("shift", "name"), [(40 / 3 + 0.01, "location"), (40 / 3 - 0.01, ""), (32.7, "location"), (32.8, "background")]
)
def test_the_bounds_of_iou_are_a_half_and_a_tenth(shift, name):
    assert kinds((0, 0.9, [10 + shift, 10, 40, 40]))[0] == [name]


def test_an_image_without_objects_has_background_alone():
    truth = truth_of([], 1, "a")
    (image,) = Detection(truth, found_of([(1, 0, 0.5, [0, 0, 9, 9])])).images
    assert faults(image).kinds.tolist() == [ERRORS.index("background")]


def test_of_two_errors_at_one_object_the_better_score_is_repaired_and_the_other_removed():
    truth = truth_of([(1, 0, [10, 10, 40, 40])], 1, "a")
    found = found_of([(1, 0, 0.9, [30, 10, 40, 40]), (1, 0, 0.8, [10, 30, 40, 40])])
    result = tide(Detection(truth, found).images, 1)
    assert result.base.tolist() == [0]
    assert result.counts[ERRORS.index("location")].tolist() == [2]
    assert result.fixed[ERRORS.index("location")].tolist() == [1]
    assert result.gains[ERRORS.index("location")] == 1


def ap50(truth, found):
    return Detection(truth, found).precision[0, :, 0]


@pytest.mark.parametrize("seed", range(4))
def test_gains_are_those_of_an_evaluation_of_fixed_data(seed):
    """Detections are removed, and objects that are missed, and pycocotools measures what is left."""
    truth, found = random_set(seed)
    run = Detection(truth, found)
    result = tide(run.images, 3)
    assert result.base == pytest.approx(ap50(truth, found), abs=1e-9)
    each = [faults(image) for image in run.images]
    for number, name in enumerate(ERRORS):
        wrong = {int(i) for image, one in zip(run.images, each, strict=True) for i in image.ids[one.kinds == number]}
        missed = {int(i) for image, one in zip(run.images, each, strict=True) for i in image.truth_ids[one.missed]}
        if name in ("both", "duplicate", "background"):
            left = [one for place, one in enumerate(found) if place not in wrong]
            assert result.fixed[number] == pytest.approx(ap50(truth, left), abs=1e-9), name
            assert result.counts[number].sum() == len(wrong)
        elif name == "missed":
            kept = [one for place, one in enumerate(truth["annotations"]) if place not in missed]
            assert result.fixed[number] == pytest.approx(ap50({**truth, "annotations": kept}, found), abs=1e-9)
            assert result.counts[number].sum() == len(missed)
    assert sum(result.counts.sum(axis=1)[:5]) == sum((~image.hit).sum() for image in run.images)


@pytest.mark.parametrize(("seed", "name"), [(seed, name) for seed in range(4) for name in ("class", "location")])
def test_repairs_are_those_of_an_evaluation_of_repaired_data(seed, name):
    """The class is changed, or the box put onto the object; those that come too late are removed."""
    truth, found = random_set(seed)
    run = Detection(truth, found)
    result = tide(run.images, 3)
    repaired = {place: dict(one) for place, one in enumerate(found)}
    for image in run.images:
        one, done = faults(image), set()
        for index in np.flatnonzero(one.kinds == ERRORS.index(name)):
            place, near = int(image.ids[index]), int(one.near[index])
            if image.found[near] or near in done:
                del repaired[place]
                continue
            done.add(near)
            repaired[place]["category_id"] = int(image.truth_labels[near]) + 1
            repaired[place]["bbox"] = [*map(float, image.truth_boxes[near])]
    fixed = result.fixed[ERRORS.index(name)]
    assert fixed == pytest.approx(ap50(truth, [*repaired.values()]), abs=1e-9)
    assert (fixed >= result.base - 1e-12).all()


@pytest.mark.parity
def test_numbers_are_those_of_the_authors_program():
    """Recorded from tidecv 1.0.1, in percent. In this set no object has errors of two types near it, of which that
    program repairs the one with the best score alone."""
    result = tide(Detection(*random_set(4)).images, 3)
    assert result.counts.sum(axis=1).tolist() == [9, 13, 4, 4, 10, 8]
    assert 100 * result.gains == pytest.approx([15.2221, 9.505, 1.4587, 0.1829, 4.6509, 6.8867], abs=1e-4)
    assert 100 * (result.no_false.mean() - result.base.mean()) == pytest.approx(23.663, abs=1e-3)
    assert 100 * (result.no_missed.mean() - result.base.mean()) == pytest.approx(22.926, abs=1e-3)
