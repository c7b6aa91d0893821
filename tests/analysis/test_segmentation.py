"""Numbers of label maps agree with MMSegmentation's metric."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mm_vitbackbones.analysis.segmentation import IGNORED, Collector, boundary_confusion


def maps(seed, size=(40, 56), classes=5, count=4):
    """Blocks of labels, and maps that are wrong in places; the last class is nowhere."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        truth = np.kron(rng.integers(0, classes - 1, (size[0] // 8, size[1] // 8)), np.ones((8, 8), int)).astype(
            np.uint8
        )
        found = np.where(rng.random(size) < 0.2, rng.integers(0, classes - 1, size), truth).astype(np.uint16)
        truth[rng.random(size) < 0.1] = IGNORED
        yield found, truth


@pytest.mark.mmseg
def test_iou_and_accuracy_are_mmsegs():
    pytest.importorskip("mmseg")
    from mmseg.evaluation.metrics import IoUMetric

    metric = IoUMetric()
    metric.dataset_meta = {"classes": [*"abcde"]}
    collector, results = Collector([*"abcde"]), []
    for number, (found, truth) in enumerate(maps(0)):
        collector.add(str(number), found, truth)
        pair = [torch.from_numpy(labels.astype(np.int64)) for labels in (found, truth)]
        results.append(metric.intersect_and_union(*pair, 5, IGNORED))
    totals = [sum(column) for column in zip(*results, strict=True)]
    theirs = metric.total_area_to_metrics(*totals, ["mIoU"], None, 1)
    run = collector.result()
    assert run.iou == pytest.approx(theirs["IoU"], abs=1e-6, nan_ok=True)
    assert run.accuracy == pytest.approx(theirs["Acc"], abs=1e-6, nan_ok=True)
    assert run.pixel_accuracy == pytest.approx(float(theirs["aAcc"]), abs=1e-6)
    assert np.isnan(run.iou[4])


def test_confusion_and_images_are_what_a_loop_counts():
    collector = Collector([*"abcde"])
    table, each = np.zeros((5, 5), int), []
    for number, (found, truth) in enumerate(maps(1, (8, 16), count=2)):
        collector.add(str(number), found, truth)
        for one, other in zip(found.ravel(), truth.ravel(), strict=True):
            if other != IGNORED:
                table[other, one] += 1
        kept = truth != IGNORED
        ious = [
            ((found == k) & (truth == k)).sum() / (((found == k) & kept) | (truth == k)).sum()
            for k in range(5)
            if (((found == k) & kept) | (truth == k)).any()
        ]
        each.append(np.mean(ious))
    run = collector.result()
    assert run.table.tolist() == table.tolist()
    assert run.image_iou == pytest.approx(each)


def test_boundary_iou_of_a_moved_square_is_what_arithmetic_gives():
    """The diagonal of 100x100 pixels is 141, so a boundary is 3 wide. Squares of 20x20, one moved by a column."""
    found, truth = np.zeros((2, 100, 100), np.uint8)
    truth[40:60, 40:60] = 1
    found[40:60, 41:61] = 1
    ring = 20 * 20 - 14 * 14
    # Both rings have two rows of 3 x 19, and in the 14 rows between, 2 of 3 columns on either side.
    both = 2 * 3 * 19 + 14 * 4
    counts = boundary_confusion(found, truth, 2)
    assert counts[:, 1].tolist() == [both, ring - both, ring - both]
    run = Collector(["a", "b"])
    run.add("x", found, truth)
    assert run.result().boundary_iou[1] == pytest.approx(both / (2 * ring - both))


def test_the_edge_of_an_image_is_a_boundary_and_the_inside_counts_for_nothing():
    whole = np.zeros((100, 100), np.uint8)
    assert boundary_confusion(whole, whole, 1)[:, 0].tolist() == [100 * 100 - 94 * 94, 0, 0]


@pytest.mark.parametrize(
    ("found", "truth", "words"),
    [
        (np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8), "different sizes, 4x4 and 4x5"),
        (
            np.full((4, 4), 7, np.uint8),
            np.zeros((4, 4), np.uint8),
            "label map has the label 7, and there are 2 classes",
        ),
        (np.zeros((4, 4), np.uint8), np.full((4, 4), 9, np.uint8), "ground truth has the label 9"),
    ],
)
def test_maps_that_do_not_fit_are_refused(found, truth, words):
    with pytest.raises(ValueError, match=words):
        Collector(["a", "b"]).add("x", found, truth)


def test_no_images_give_no_numbers():
    run = Collector(["a", "b"]).result()
    assert np.isnan(run.iou).all()
    assert np.isnan(run.boundary_iou).all()
    assert run.image_iou.tolist() == []
