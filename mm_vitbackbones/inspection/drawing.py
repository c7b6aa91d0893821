"""Maps over images, panels side by side, and lines by layer. Images are (H, W, 3) uint8 arrays, BGR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from mm_vitbackbones.canvas import figure_png, new_figure, white, write_text
from mm_vitbackbones.errors import printable
from mm_vitbackbones.ops.looking import Lattice

SHEET = 1600
"""Width in pixels that panels side by side fill, if they are not too small then."""
PANEL = (128, 400)
"""The least and the largest width of a panel."""
MOST = 14
"""Panels of a line; others follow in the next one."""
CAPTION = 20


def over_pixels(map: Tensor, cells: Lattice, stride: float, size: tuple[int, int]) -> np.ndarray:
    """A map (H', W') of cells as one of pixels (H, W): each has the value of the nearest cell.

    Args:
        stride: pixels between the cells that ``cells`` counts in.
    """
    index = []
    for axis, pixels in enumerate(size):
        place = (torch.arange(pixels, dtype=torch.float64) + 0.5) / stride
        nearest = torch.floor((place - cells.first[axis]) / cells.step[axis] + 0.5)
        index.append(nearest.clamp(0, cells.size[axis] - 1).long())
    return map.detach().cpu()[index[0]][:, index[1]].float().numpy()


def heat(image: np.ndarray, values: np.ndarray, low: float = 0.0, high: float | None = None) -> np.ndarray:
    """Values (H, W) as colours over an image; those below zero, if ``low`` is, in blue and those above it in red."""
    high = float(values.max()) if high is None else high
    if low < 0:
        part = np.clip(values / (max(-low, high) or 1), -1, 1)[..., None]
        red, blue = np.array([40, 40, 230], np.float32), np.array([230, 90, 30], np.float32)
        gray = np.repeat(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[..., None], 3, 2).astype(np.float32)
        share = 0.85 * np.abs(part)
        return np.asarray(gray * (1 - share) + np.where(part > 0, red, blue) * share).astype(np.uint8)
    part = np.clip((values - low) / ((high - low) or 1), 0, 1)
    colours = cv2.applyColorMap((255 * part).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return cv2.addWeighted(image, 0.35, colours, 0.65, 0)


def cross(image: np.ndarray, x: float, y: float) -> np.ndarray:
    """A copy with a cross at a pixel."""
    drawn, size = image.copy(), max(8, max(image.shape[:2]) // 30)
    for colour, thickness in (((0, 0, 0), max(3, size // 4)), ((255, 255, 255), max(1, size // 8))):
        cv2.drawMarker(drawn, (int(x), int(y)), colour, cv2.MARKER_CROSS, size, thickness, cv2.LINE_AA)
    return drawn


def sheet(lines: Sequence[Sequence[tuple[str, np.ndarray]]]) -> np.ndarray:
    """Panels under captions, line by line."""
    lines = [line[i : i + MOST] for line in lines for i in range(0, len(line), MOST)]
    columns = max(len(line) for line in lines)
    widest = max(image.shape[1] for line in lines for _, image in line)
    width = min(max(PANEL[0], min(PANEL[1], SHEET // columns)), max(widest, PANEL[0]))
    drawn = []
    for line in lines:
        panels = [_panel(caption, image, width) for caption, image in line]
        height = max(len(panel) for panel in panels)
        panels = [cv2.copyMakeBorder(p, 0, height - len(p), 0, 4, cv2.BORDER_CONSTANT, value=WHITE) for p in panels]
        row = np.hstack(panels)
        missing = columns * (width + 4) - row.shape[1]
        drawn.append(cv2.copyMakeBorder(row, 0, 4, 0, missing, cv2.BORDER_CONSTANT, value=WHITE))
    return np.vstack(drawn)


WHITE = (255, 255, 255)


def _panel(caption: str, image: np.ndarray, width: int) -> np.ndarray:
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    shrinks = width < image.shape[1]
    drawn = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST)
    line = white(CAPTION, width)
    write_text(line, caption, 2, CAPTION - 6, 0.38)
    return np.vstack([line, drawn])


def lines_by_layer(networks: Mapping[str, Sequence[Sequence[float]]], label: str) -> bytes:
    """A PNG: for each network the mean over heads of each layer as a line, and the heads as points.

    Args:
        networks: of each, the values of the heads of each layer.
    """
    figure = new_figure(7, 4)
    axes = figure.subplots()
    for name, layers in networks.items():
        numbers = range(1, len(layers) + 1)
        (line,) = axes.plot(numbers, [float(np.mean(heads)) for heads in layers], marker="o", markersize=4, label=name)
        points = [(number, head) for number, heads in zip(numbers, layers, strict=True) for head in heads]
        x, y = zip(*points, strict=True)
        axes.scatter(x, y, s=6, alpha=0.35, color=line.get_color())
    axes.set(xlabel="layer", ylabel=label)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure_png(figure)


def fields(maps: Mapping[str, tuple[np.ndarray, Sequence[int]]], shares: Sequence[float]) -> bytes:
    """A PNG of receptive fields by name: energies (H, W) on a logarithmic scale, with the sides of their areas."""
    columns = min(4, len(maps))
    rows = -(-len(maps) // columns)
    figure = new_figure(3.2 * columns, 3.0 * rows)
    every = np.atleast_1d(figure.subplots(rows, columns)).flatten()
    for axes, (name, (energy, found)) in zip(every, maps.items(), strict=False):
        axes.imshow(np.log10(energy / (energy.max() or 1) + 1e-4), cmap="inferno", vmin=-4, vmax=0)
        percent = ", ".join(f"{100 * share:g}%: {area:,}" for share, area in zip(shares, found, strict=True))
        axes.set_title(f"{printable(name)}\n{percent}", fontsize=7)
        axes.tick_params(labelsize=6)
    for axes in every[len(maps) :]:
        axes.set_axis_off()
    return figure_png(figure)
