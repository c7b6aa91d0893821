"""The sections of the page, with the tables and numbers that are in the files next to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mm_vitbackbones.analysis import comparing, figures
from mm_vitbackbones.analysis.detection import MOST, SIZES, THRESHOLDS, Detection
from mm_vitbackbones.analysis.matchable import ASPECTS, SIDES, Matchable
from mm_vitbackbones.analysis.page import Box, Page, Table, drawing, figure, side_by_side, still, text
from mm_vitbackbones.analysis.scores import Judged, calibration, confusion, f1_curve, judge, ranked
from mm_vitbackbones.analysis.segmentation import Segmentation
from mm_vitbackbones.analysis.tide import BACKGROUND, ERRORS, FOREGROUND, tide
from mm_vitbackbones.analysis.training import Training
from mm_vitbackbones.analysis.values import mean, plain
from mm_vitbackbones.errors import counted
from mm_vitbackbones.files import to_csv, write_files

MEAN = "mean"
"""The name of the last row of tables by class."""

SHOWN = 100
"""Rows of a table on the page; a CSV file has all."""

KINDS = {"bbox": "boxes", "segm": "masks"}

WORST, BEST = 6, 3
"""Images that are shown."""

WHAT = {
    "class": "right place, wrong class",
    "location": f"right class, IoU {BACKGROUND:g} to {FOREGROUND:g}",
    "both": "wrong class and wrong place",
    "duplicate": "on an object that another detection has",
    "background": f"IoU of at most {BACKGROUND:g} with every object",
    "missed": "object that no detection has, nor would have with the right class or place",
}


@dataclass
class Picture:
    """An image of the data set, for the page.

    Attributes:
        name: of its file.
        jpeg: perhaps made smaller; None if it cannot be read.
        size: height and width of the whole image.
    """

    name: str
    jpeg: bytes | None
    size: tuple[int, int]


class Pictures(Protocol):
    """The images of a data set, by their ids or paths."""

    def name(self, key: Any) -> str: ...

    def picture(self, key: Any) -> Picture: ...


@dataclass
class Report:
    """What an analysis has found.

    Attributes:
        page: for a browser.
        tables: by the names of their CSV files.
        numbers: the content of ``analysis.json``.
    """

    page: Page
    tables: dict[str, Table] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)

    def table(self, name: str, table: Table) -> None:
        """Add a table to the page and to the files."""
        self.tables[name] = table
        if len(table.rows) <= SHOWN:
            self.page.add(table)
            return
        self.page.add(Table(table.head, table.rows[:SHOWN]))
        self.page.say(f"The first {SHOWN} of {len(table.rows)} rows; {name}.csv has all.")

    def write(self, folder: Path) -> Path:
        """Write all files into a folder; returns the page's.

        Raises:
            OutputError: one is there, or cannot be written.
        """
        files = {f"{name}.csv": to_csv(table.head, table.rows) for name, table in self.tables.items()}
        files["analysis.json"] = json.dumps(plain(self.numbers), indent=1, allow_nan=False).encode()
        files["analysis.html"] = self.page.render().encode()
        write_files(folder, files)
        return folder / "analysis.html"


def add_detection(
    report: Report,
    run: Detection,
    pictures: Pictures,
    score: float | None,
    matchable: tuple[Matchable, str] | None,
) -> None:
    """Everything about boxes, or about masks.

    Args:
        pictures: of the data set, by ids.
        score: the least score of detections in the confusion matrix and on images; the one with the best F1 if None.
        matchable: of the ground truth, and how it was counted.
    """
    page, classes, what = report.page, run.classes, KINDS[run.kind]
    page.section(f"Detection: {what}")
    ap = run.precision
    curve = f1_curve(run.matches)
    if score is None:
        score = float(curve.scores[curve.best]) if curve.best is not None else 0.3
        why = "the one with the best F1 of all classes together"
    else:
        why = "as it was given"
    overall = [("AP", mean(ap[..., 0].mean(axis=0))), ("AP at IoU 0.5", mean(ap[0, :, 0]))]
    overall += [("AP at IoU 0.75", mean(ap[5, :, 0]))]
    overall += [(f"AP, {size}", mean(ap[..., place].mean(axis=0))) for place, size in enumerate(SIZES) if place]
    overall += [(f"recall, {MOST} detections", mean(run.recall[..., 0].mean(axis=0)))]
    page.key_numbers(overall)
    shown = sum(len(image.labels) for image in run.images)
    page.say(
        f"{counted(len(run.images), 'image')}, {counted(int(run.counts[:, 0].sum()), 'object')}, "
        f"{counted(shown, 'detection')}. AP is COCO's, the "
        f"mean over IoU 0.5 to 0.95, with at most {MOST} detections of an image and class. Objects are small below "
        "32x32 pixels of the image, and large from 96x96.",
        f"Where detections need a least score, it is {score:.3f}, {why}.",
    )
    numbers: dict[str, Any] = dict(overall) | {"score": score}
    report.numbers[run.kind] = numbers
    _by_class(report, run)
    _curves(report, run)
    _tide(report, run)
    page.heading("Confusion of classes")
    table = confusion(run.images, len(classes), score)
    numbers["confusion"] = table
    page.say(
        f"Objects by the class of the detection on them (IoU of at least 0.5, score of at least {score:.3f}). The last "
        "row has detections on background, the last column objects without a detection."
    )
    _matrix(report, f"{run.kind}_confusion", table, [*classes, "background"])
    found = calibration(run.matches)
    numbers["calibration_error"] = found.error
    page.heading("Calibration")
    page.say(
        "If a score of 0.7 means that 70 % of such detections are right (IoU of at least 0.5), the bars end at the "
        f"line. The mean gap is {found.error:.3f}."
    )
    page.add(figure(figures.reliability(found), "share of right detections by score"))
    if matchable is not None:
        _matchable(report, *matchable)
    _images(report, run, [judge(image, score) for image in run.images], pictures)


def _by_class(report: Report, run: Detection) -> None:
    ap, recall, counts = run.precision, run.recall, run.counts
    head = ["class", "objects", "AP", "AP50", "AP75", *(f"AP {size}" for size in SIZES[1:]), "recall"]
    head += ["best F1", "at score", "precision there", "recall there"]
    rows: list[list[Any]] = []
    for label, (name, one) in enumerate(zip(run.classes, run.matches, strict=True)):
        curve = f1_curve([one])
        best = curve.best
        at = [curve.f1, curve.scores, curve.precision, curve.recall]
        rows.append(
            [name, counts[label, 0], ap[:, label, 0].mean(), ap[0, label, 0], ap[5, label, 0]]
            + [ap[:, label, place].mean() for place in range(1, len(SIZES))]
            + [recall[:, label, 0].mean()]
            + [float("nan") if best is None or not one.objects.sum() else float(each[best]) for each in at]
        )
    means = [mean(np.array([row[place] for row in rows], float)) for place in range(2, len(head))]
    means[-3:] = [float("nan")] * 3
    report.page.heading("Each class")
    report.table(f"{run.kind}_classes", Table(head, [*rows, [MEAN, int(counts[:, 0].sum()), *means]], last=True))
    by_iou = [[f"{threshold:.2f}", *ap[place, :, 0]] for place, threshold in enumerate(THRESHOLDS)]
    report.tables[f"{run.kind}_thresholds"] = Table(["IoU", *run.classes], by_iou)
    report.page.heading("AP by IoU")
    shown = [f"{threshold:.2f}" for threshold in THRESHOLDS]
    report.page.add(Table(["", *shown], [["AP", *(mean(ap[place, :, 0]) for place in range(len(THRESHOLDS)))]]))
    report.numbers[run.kind]["classes"] = [dict(zip(head, row, strict=True)) for row in rows]


def _curves(report: Report, run: Detection) -> None:
    report.page.heading("Precision and recall, F1")
    report.page.say(
        f"The {figures.NAMED} classes with the lowest values have colours. A point marks the best F1 of a class."
    )
    each = [f1_curve([one]) for one in run.matches]
    report.page.add(
        side_by_side(
            *(
                still(figures.precision_recall(run.curves, run.classes, place), "svg+xml", "precision by recall")
                for place in (0, 5)
            )
        ),
        figure(figures.f1(each, f1_curve(run.matches), run.classes), "F1 by least score"),
    )


def _tide(report: Report, run: Detection) -> None:
    found = tide(run.images, len(run.classes))
    page, gains = report.page, found.gains
    base = mean(found.base)
    page.heading("Types of errors")
    page.say(
        "TIDE (Bolya et al. 2020): each false detection and each missed object has one type. The gain is the AP at IoU "
        f"{FOREGROUND:g}, now {base:.3f}, that fixing all errors of a type would add, the others left as they are; so "
        "gains do not sum up."
    )
    page.add(figure(figures.bars(ERRORS, [*gains], "gain of AP at IoU 0.5"), "gain of AP by type of error"))
    rows = [[name, WHAT[name], int(found.counts[place].sum()), gains[place]] for place, name in enumerate(ERRORS)]
    report.table(f"{run.kind}_errors", Table(["error", "what it is", "number", "gain of AP50"], rows))
    by_class = [
        [name, found.base[label], *found.counts[:, label], *(found.fixed[:, label] - found.base[label])]
        for label, name in enumerate(run.classes)
    ]
    head = ["class", "AP50", *ERRORS, *(f"gain, {name}" for name in ERRORS)]
    report.table(f"{run.kind}_errors_by_class", Table(head, by_class))
    report.numbers[run.kind]["errors"] = {
        name: {"count": int(found.counts[place].sum()), "gain": gains[place]} for place, name in enumerate(ERRORS)
    } | {
        "without false detections": mean(found.no_false) - base,
        "without missed objects": mean(found.no_missed) - base,
    }


def _matrix(report: Report, name: str, table: np.ndarray, names: Sequence[str]) -> None:
    rows = [[label, *row] for label, row in zip(names, table, strict=True)]
    whole = Table(["ground truth", *names], rows)
    if len(names) <= figures.LARGEST_MATRIX:
        report.tables[name] = whole
        report.page.add(figure(figures.matrix(table, names, names), "confusion matrix"))
        return
    report.tables[name] = whole
    wrong = table.astype(np.int64, copy=True)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:30]
    pairs = [(int(place) // len(names), int(place) % len(names)) for place in order]
    listed = [[names[row], names[column], int(wrong[row, column])] for row, column in pairs if wrong[row, column]]
    report.page.say(f"The most frequent confusions; {name}.csv has the whole table.")
    report.page.add(Table(["ground truth", "found as", "number"], listed))


def _matchable(report: Report, table: Matchable, how: str) -> None:
    report.page.heading("Objects that can be matched at all")
    report.page.say(f"{table.share:.1%} of the objects: {how}.")
    report.page.add(figure(figures.matched(table), "objects by side and aspect, with the share that can be matched"))
    rows = [
        [side, aspect, int(table.counts[row, column]), int(table.matched[row, column])]
        for row, side in enumerate(figures.bounds(SIDES))
        for column, aspect in enumerate(figures.bounds(ASPECTS))
        if table.counts[row, column]
    ]
    report.tables["matchable"] = Table(["side, pixels", "width / height", "objects", "can be matched"], rows)
    report.numbers["matchable"] = {"share": table.share, "how": how}


def _images(report: Report, run: Detection, judged: Sequence[Judged], pictures: Pictures) -> None:
    order = ranked(judged)
    head = ["image", "F1", "right", "false", "missed"]
    counts = [[int(each.sum()) for each in (one.right, one.false, one.missed)] for one in order]
    names = [pictures.name(one.image.key) for one in order]
    rows = [[name, one.f1, *count] for name, one, count in zip(names, order, counts, strict=True)]
    report.tables[f"{run.kind}_images"] = Table(head, rows)
    worst = [one for one in order if one.errors][:WORST]
    best = [one for one in reversed(order) if one.right.any() and all(one is not each for each in worst)][:BEST]
    for title, chosen in (("The worst images", worst), ("The best images", best)):
        if not chosen:
            continue
        report.page.heading(title)
        report.page.say(
            "First (left, or above): ground truth, found in thin blue, missed in dashed orange. Then detections, right "
            "ones in thin green, false ones in purple, with their scores."
        )
        for place, one in enumerate(chosen):
            _case(report, run, one, pictures.picture(one.image.key), f"{run.kind}{title.split()[1]}{place}")


def _case(report: Report, run: Detection, one: Judged, picture: Picture, name: str) -> None:
    image = one.image
    truth = [
        Box(box, run.classes[label], "missed" if missed else "found")
        for box, label, missed, crowd in zip(
            image.truth_boxes, image.truth_labels, one.missed, image.truth_ignored, strict=True
        )
        if not crowd
    ]
    found = [
        Box(image.boxes[place], f"{run.classes[image.labels[place]]} {image.scores[place]:.2f}", kind)
        for kind, chosen in (("right", one.right), ("false", one.false))
        for place in np.flatnonzero(chosen)
    ]
    missed, false, right = (int(each.sum()) for each in (one.missed, one.false, one.right))
    sides = [
        (
            f"{picture.name}: {counted(len(truth), 'object')}, {missed} missed",
            [*sorted(truth, key=lambda box: box.kind)],
        ),
        (f"{right} right, {false} false; F1 {one.f1:.2f}", found),
    ]
    report.page.add(f'<div class="case">{drawing(picture.jpeg, picture.size, name, sides)}</div>')


def add_segmentation(report: Report, run: Segmentation, errors: Callable[[str], tuple[Picture, bytes | None]]) -> None:
    """Everything about label maps.

    Args:
        errors: gives the picture of an image, and a map of its wrong pixels as a PNG file of the same size.
    """
    page, classes = report.page, run.classes
    page.section("Segmentation")
    overall = [("mIoU", mean(run.iou)), ("mean accuracy", mean(run.accuracy)), ("pixel accuracy", run.pixel_accuracy)]
    overall += [("boundary IoU", mean(run.boundary_iou))]
    page.key_numbers(overall)
    page.say(
        f"{len(run.keys):,} images, {int(run.table.sum()):,} labelled pixels. Boundary IoU (Cheng et al. 2021) counts "
        "only pixels of a region that are within 2 % of the image's diagonal from its boundary; it sums them over all "
        "images for each class, as IoU does."
    )
    report.numbers["segmentation"] = dict(overall) | {"confusion": run.table}
    truth, found = run.table.sum(axis=1), run.table.sum(axis=0)
    head = ["class", "share of pixels", "IoU", "accuracy", "precision", "boundary IoU"]
    precision = np.diag(run.table) / np.where(found > 0, found, np.nan)
    shares = truth / max(1, truth.sum())
    rows = [
        [name, *values]
        for name, *values in zip(classes, shares, run.iou, run.accuracy, precision, run.boundary_iou, strict=True)
    ]
    last = [MEAN, float("nan"), *(mean(column) for column in (run.iou, run.accuracy, precision, run.boundary_iou))]
    page.heading("Each class")
    report.table("segmentation_classes", Table(head, [*rows, last], last=True))
    report.numbers["segmentation"]["classes"] = [dict(zip(head, row, strict=True)) for row in rows]
    page.heading("Confusion of classes")
    page.say("Shares of the pixels of a class (row) that have the label of a column.")
    _matrix(report, "segmentation_confusion", run.table, classes)
    each = run.image_iou
    order = [int(place) for place in np.argsort(each, kind="stable") if not np.isnan(each[place])]
    report.tables["segmentation_images"] = Table(["image", "mean IoU"], [[run.keys[i], each[i]] for i in order])
    worst = order[:WORST]
    best = [place for place in reversed(order) if place not in worst][:BEST]
    for title, chosen in (("The worst images", worst), ("The best images", best)):
        if not chosen:
            continue
        page.heading(title)
        page.say(
            "Next to each image, or below it: wrong pixels in orange, those that do not count in gray. The mean "
            "IoU is of the classes in it."
        )
        for place in chosen:
            picture, png = errors(run.keys[place])
            sides = [
                _still(picture.jpeg, "jpeg", f"{picture.name}: mean IoU {each[place]:.3f}"),
                _still(png, "png", "wrong pixels"),
            ]
            page.add(f'<div class="case">{side_by_side(*sides)}</div>')


def _still(content: bytes | None, kind: str, caption: str) -> str:
    shown = "the image cannot be read" if content is None else still(content, kind, caption)
    return f"<figure>{shown}<figcaption>{text(caption)}</figcaption></figure>"


def add_comparison(
    report: Report,
    what: str,
    names: tuple[str, str],
    classes: Sequence[str],
    result: comparing.Difference,
    resamples: int,
) -> None:
    """Two runs side by side.

    Args:
        what: is compared, such as ``AP``.
        names: of both runs.
    """
    page = report.page
    page.section(f"{what}: {names[1]} against {names[0]}")
    page.say(
        f"First: {names[0]}; second: {names[1]}. The difference is second minus first. Its interval holds "
        f"{comparing.LEVEL} % of {resamples:,} draws of as many images with replacement, the same for both runs. One "
        "that does not hold 0 is drawn in blue: of many classes, some such intervals come by chance."
    )
    rows = [
        [name, result.first[i], result.second[i], result.difference[i], result.low[i], result.high[i]]
        for i, name in enumerate([*classes, MEAN])
    ]
    order = sorted(range(len(classes)), key=lambda i: (np.isnan(result.difference[i]), result.difference[i]))[:40]
    shown = [*order, len(classes)]
    label = f"difference of {what}"
    page.add(
        figure(
            figures.differences(
                [[*classes, MEAN][i] for i in shown],
                result.difference[shown],
                result.low[shown],
                result.high[shown],
                label,
            ),
            label,
        )
    )
    head = ["class", f"first {what}", f"second {what}", "difference", "from", "to"]
    report.table(f"against_{what.replace(' ', '_').lower()}", Table(head, rows, last=True))
    report.numbers.setdefault("against", {})[what] = [dict(zip(head, row, strict=True)) for row in rows]


def add_trainings(report: Report, runs: Sequence[Training]) -> None:
    """The curves of trainings, and what an iteration took."""
    report.page.section("Training")
    report.page.add(figure(figures.trainings(runs), "curves of the trainings"))
    names = [*dict.fromkeys(name for run in runs for name in run.metrics)]
    head = ["run", "iterations", "last loss", "seconds of an iteration", "memory, MiB", *names]
    rows = []
    for run in runs:
        last = {key: points[-1] for key, points in run.curves.items()}
        times = [value for _, value in run.curves.get("time", [])]
        memory = [value for _, value in run.curves.get("memory", [])]
        rows.append(
            [
                run.name,
                int(last["loss"][0]) if "loss" in last else None,
                last["loss"][1] if "loss" in last else None,
                float(np.median(times)) if times else None,
                max(memory) if memory else None,
                *(run.metrics[name][-1][1] if name in run.metrics else None for name in names),
            ]
        )
    report.page.say("Seconds of an iteration: the median of what was logged. Memory: the most. Metrics: the last.")
    report.table("training", Table(head, rows))
    points = [
        [run.name, key, int(step), value]
        for run in runs
        for key, curve in (*run.curves.items(), *run.metrics.items())
        for step, value in curve
    ]
    report.tables["training_curves"] = Table(["run", "quantity", "iteration", "value"], points)
    report.numbers["training"] = [dict(zip(head, row, strict=True)) for row in rows]


def summary(report: Report, names: Mapping[str, str]) -> None:
    """What was analysed, below the title."""
    report.page.say(*(f"{what}: {name}" for what, name in names.items()))
