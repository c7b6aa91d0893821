"""What all drawings share: figures of matplotlib without a display, text on images, and colours.

Images are (H, W, 3) uint8 arrays, BGR.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from mm_vitbackbones.errors import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = COLORS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#000000",
)
"""Okabe and Ito's, which also those tell apart who see fewer colours."""

FONT = cv2.FONT_HERSHEY_SIMPLEX


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure  # no pyplot: it would set up a global backend

    return Figure(figsize=(width, height), layout="constrained")


def figure_png(figure: Figure) -> bytes:
    """A figure as a PNG file of 100 pixels an inch. See ``figure_svg``."""
    return _saved(figure, format="png", dpi=100)


def figure_svg(figure: Figure) -> bytes:
    """A figure as an SVG file, which does not say when it was made.

    Its texts are no formulas. A logarithmic axis, whose numbers matplotlib writes as such, needs a formatter.
    """
    return _saved(figure, format="svg", metadata={"Date": None})


def _saved(figure: Figure, **options: Any) -> bytes:
    for axes in figure.axes:
        texts = [*axes.get_xticklabels(), *axes.get_yticklabels(), *axes.texts, axes.title]
        if (legend := axes.get_legend()) is not None:
            texts += legend.get_texts()
        for text in texts:
            text.set_parse_math(False)  # names have dollars
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the font lacks the signs of many scripts
        figure.savefig(buffer, **options)
    return buffer.getvalue()


def bgr(color: str) -> tuple[int, int, int]:
    """The blue, green and red of a colour such as ``#0072b2``."""
    red, green, blue = bytes.fromhex(color.removeprefix("#"))
    return blue, green, red


def write_text(
    image: np.ndarray, text: str, x: int, y: int, size: float, color: tuple[int, int, int] = (0, 0, 0)
) -> None:
    """Write a line of text onto an image. (x, y) is where its base line begins; ``size`` 1 is some 22 pixels high."""
    cv2.putText(image, printable(text), (x, y), FONT, size, color, 1, cv2.LINE_AA)


def text_size(text: str, size: float) -> tuple[int, int, int]:
    """The width of a line of text, its height above the base line, and that below it, in pixels."""
    (width, height), below = cv2.getTextSize(printable(text), FONT, size, 1)
    return width, height, below


def white(height: int, width: int) -> np.ndarray:
    """A white image."""
    return np.full((height, width, 3), 255, np.uint8)
