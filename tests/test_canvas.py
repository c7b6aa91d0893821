"""What all drawings share."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from mm_vitbackbones.canvas import (
    COLORS,
    VERMILION,
    bgr,
    figure_png,
    figure_svg,
    new_figure,
    text_size,
    white,
    write_text,
)

BAD_FORMULA = "a $\\b$ \u4e2d"
"""A name that is no formula of matplotlib's, with a sign that its font lacks."""


@pytest.mark.parametrize("save", [figure_png, figure_svg])
def test_names_in_a_figure_may_hold_dollars_and_any_script(save: Any) -> None:
    pytest.importorskip("matplotlib")
    figure = new_figure(2, 1)
    axes = figure.subplots()
    axes.plot([0, 1], label=BAD_FORMULA)
    axes.set_title(BAD_FORMULA)
    axes.text(0, 0, BAD_FORMULA)
    axes.set_xticks([0, 1], [BAD_FORMULA] * 2)
    axes.set_yticks([0, 1], [BAD_FORMULA] * 2)
    axes.legend()
    assert len(save(figure)) > 1000


def test_a_figure_has_100_pixels_an_inch() -> None:
    pytest.importorskip("matplotlib")
    png = np.frombuffer(figure_png(new_figure(3, 2)), np.uint8)
    assert cv2.imdecode(png, cv2.IMREAD_COLOR).shape == (200, 300, 3)


def test_colours_are_blue_green_red_on_images() -> None:
    assert bgr(VERMILION) == (0, 94, 213)
    assert len({bgr(color) for color in COLORS}) == len(COLORS)


def test_a_text_is_as_large_as_it_says_and_shows_what_steers_a_terminal() -> None:
    width, height, below = text_size("a\x1bg", 1.0)
    assert (width, height, below) == text_size("a\\x1bg", 1.0)
    image = white(60, 200)
    write_text(image, "a\x1bg", 10, 40, 1.0)
    rows, columns = np.nonzero(image.min(axis=2) < 128)
    assert columns.min() >= 10
    assert columns.max() <= 10 + width
    assert 40 - height - 1 <= rows.min()
    assert rows.max() <= 40 + below
    assert columns.max() - columns.min() > 0.8 * width
