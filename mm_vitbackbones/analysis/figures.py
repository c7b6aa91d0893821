"""Figures of an analysis, as SVG files."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mm_vitbackbones.analysis.detection import RECALLS, THRESHOLDS
from mm_vitbackbones.analysis.matchable import ASPECTS, SIDES, Matchable
from mm_vitbackbones.analysis.scores import BINS, Calibration, F1Curve
from mm_vitbackbones.analysis.training import Training
from mm_vitbackbones.canvas import COLORS, figure_svg, new_figure
from mm_vitbackbones.errors import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 6
"""Classes with a colour and a place in the legend; the others are thin and gray."""

LARGEST_MATRIX = 40
"""Classes of a confusion matrix that is drawn; of more, the table alone is given."""

SHORT = 18
"""Characters of a name in a figure."""


def short(name: str) -> str:
    """A name that fits into a figure."""
    name = printable(name)
    return name if len(name) <= SHORT else f"{name[: SHORT - 1]}\u2026"


def _svg(figure: Figure) -> bytes:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    return figure_svg(figure)


def _lowest(values: np.ndarray) -> list[int]:
    """The places of the lowest numbers, which have colours."""
    order = [int(place) for place in np.argsort(values, kind="stable") if not np.isnan(values[place])]
    return order[:NAMED]


def precision_recall(curves: np.ndarray, classes: Sequence[str], number: int) -> bytes:
    """The classes with the lowest AP at IoU 0.5 have colours.

    Args:
        curves: (T, R, K) precision, by COCO's thresholds and recalls; nan for a class without objects.
        number: of the threshold.
    """
    figure = new_figure(5, 3.4)
    axes = figure.subplots()
    colored = _lowest(curves[0].mean(axis=0))
    for label in range(len(classes)):
        if label not in colored:
            axes.plot(RECALLS, curves[number, :, label], color="#bbbbbb", linewidth=0.8)
    for color, label in zip(COLORS, colored, strict=False):
        axes.plot(RECALLS, curves[number, :, label], color=color, label=short(classes[label]))
    title = f"IoU {THRESHOLDS[number]:g}"
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title=title)
    axes.grid(alpha=0.3)
    if colored:
        axes.legend(fontsize=8, framealpha=0.8)
    return _svg(figure)


def f1(each: Sequence[F1Curve], together: F1Curve, classes: Sequence[str]) -> bytes:
    """F1 by the score from which detections are kept, with a point at the best one."""
    figure = new_figure(6, 3.4)
    axes = figure.subplots()
    highest = np.array([curve.f1.max() if curve.f1.size else np.nan for curve in each])
    colored = _lowest(highest)
    for label, curve in enumerate(each):
        if label not in colored and curve.f1.size:
            axes.plot(curve.scores, curve.f1, color="#bbbbbb", linewidth=0.8)
    listed = [(color, short(classes[label]), each[label]) for color, label in zip(COLORS, colored, strict=False)]
    if together.f1.size:
        listed.append(("#000000", "all classes", together))
    for color, name, curve in listed:
        width = 2.2 if curve is together else 1.3
        axes.plot(curve.scores, curve.f1, color=color, linewidth=width, label=name)
        axes.plot(curve.scores[curve.best], curve.f1[curve.best], "o", color=color, markersize=5)
    axes.set(xlabel="least score", ylabel="F1 at IoU 0.5", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    if listed:
        axes.legend(fontsize=8)
    return _svg(figure)


def reliability(found: Calibration) -> bytes:
    """The share of right detections by score, over the number of detections."""
    figure = new_figure(5, 3.8)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    middle = (np.arange(BINS) + 0.5) / BINS
    upper.bar(middle, np.nan_to_num(found.right), width=0.9 / BINS, color=COLORS[0])
    upper.plot([0, 1], [0, 1], "--", color="#555555", linewidth=1)
    upper.set(ylabel="share that is right", ylim=(0, 1))
    lower.bar(middle, found.counts, width=0.9 / BINS, color="#888888")
    lower.set(xlabel="score", ylabel="detections", xlim=(0, 1))
    if found.counts.max(initial=0) > 100:
        lower.set_yscale("symlog", linthresh=10)
        lower.yaxis.set_major_formatter("{x:g}")
    return _svg(figure)


def bars(names: Sequence[str], values: Sequence[float], label: str) -> bytes:
    """One bar for each name, with its value."""
    figure = new_figure(6, 0.6 + 0.34 * len(names))
    axes = figure.subplots()
    places = range(len(names))
    axes.barh(places, np.nan_to_num(np.array(values, float)), color=COLORS[: len(names)] or None)
    for place, value in zip(places, values, strict=True):
        axes.text(max(0.0, float(np.nan_to_num(value))), place, f" {value:.3f}", va="center", fontsize=9)
    axes.set_yticks([*places], [*map(short, names)])
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.margins(x=0.15)
    return _svg(figure)


def matrix(table: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> bytes:
    """A confusion matrix. Colours are shares of the rows; the numbers are counts, or shares where those are long."""
    figure = new_figure(1.8 + 0.45 * len(columns), 1.5 + 0.36 * len(rows))
    axes = figure.subplots()
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), [*map(short, columns)], rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(rows)), [*map(short, rows)], fontsize=8)
    long = table.max(initial=0) >= 10000
    for row, column in itertools.product(range(len(rows)), range(len(columns))):
        if table[row, column]:
            text = f"{shares[row, column]:.2f}" if long else str(int(table[row, column]))
            ink = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=ink)
    axes.set(xlabel="found", ylabel="ground truth")
    return _svg(figure)


def matched(table: Matchable) -> bytes:
    """Objects by side and aspect: the share that can be matched as a colour, the number in the cell."""
    figure = new_figure(6, 3.6)
    axes = figure.subplots()
    shares = np.where(table.counts > 0, table.matched / np.maximum(table.counts, 1), np.nan)
    drawn = axes.imshow(shares, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    figure.colorbar(drawn, ax=axes, label="share that can be matched")
    axes.set_xticks(range(len(ASPECTS) - 1), bounds(ASPECTS), fontsize=8)
    axes.set_yticks(range(len(SIDES) - 1), bounds(SIDES))
    axes.set(xlabel="width / height", ylabel="side in the input, pixels")
    for row, column in itertools.product(*map(range, shares.shape)):
        if table.counts[row, column]:
            ink = "white" if shares[row, column] < 0.6 else "black"
            axes.text(column, row, str(table.counts[row, column]), ha="center", va="center", fontsize=8, color=ink)
    return _svg(figure)


def bounds(edges: Sequence[float]) -> list[str]:
    """Such as ``8 to 16``."""
    pairs = itertools.pairwise(edges)
    return [
        f"above {low:.3g}" if high == np.inf else f"below {high:.3g}" if low == 0 else f"{low:.3g} to {high:.3g}"
        for low, high in pairs
    ]


def differences(names: Sequence[str], value: np.ndarray, low: np.ndarray, high: np.ndarray, label: str) -> bytes:
    """Differences with their intervals, the mean of all last."""
    figure = new_figure(6, 0.9 + 0.26 * len(names))
    axes = figure.subplots()
    for place in range(len(names)):
        if np.isnan(value[place]):
            continue
        sure = low[place] > 0 or high[place] < 0
        color = COLORS[0] if sure else "#888888"
        axes.plot([low[place], high[place]], [place, place], color=color, linewidth=2)
        axes.plot(value[place], place, "o", color=color, markersize=5)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), [*map(short, names)], fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.3)
    return _svg(figure)


UNITS = {"loss": "loss", "lr": "learning rate", "time": "seconds of an iteration", "memory": "memory, MiB"}


def trainings(runs: Sequence[Training]) -> bytes:
    """The curves of several runs, a panel for each quantity that any of them has. A single value is a point."""
    panels: list[tuple[str, str, Any]] = [(key, UNITS[key], "curves") for key in UNITS]
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    headlines = [name for name in names if name.rsplit("/", 1)[-1] in ("bbox_mAP", "segm_mAP", "mIoU", "mAP", "PQ")]
    panels += [(name, name.rsplit("/", 1)[-1], "metrics") for name in headlines or [*names][:2]]
    panels = [(key, label, kind) for key, label, kind in panels if any(getattr(run, kind).get(key) for run in runs)]
    columns = min(2, len(panels)) or 1
    rows = max(1, -(-len(panels) // columns))
    figure = new_figure(4.5 * columns, 2.7 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (key, label, kind) in zip(grid, panels, strict=False):
        for color, run in zip(itertools.cycle(COLORS), runs, strict=False):
            points = getattr(run, kind).get(key)
            if points:
                axes.plot(*zip(*points, strict=True), color=color, label=short(run.name), **marker(len(points)))
        axes.set(xlabel="iteration", ylabel=short(label) if kind == "metrics" else label)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    for axes in grid[len(panels) :]:
        figure.delaxes(axes)
    if len(runs) > 1 and panels:
        grid[0].legend(fontsize=8)
    return _svg(figure)


def marker(count: int) -> dict[str, Any]:
    """How a curve of so many points is drawn."""
    return {"marker": "o" if count < 30 else None, "markersize": 6 if count == 1 else 3, "linewidth": 1.3}
