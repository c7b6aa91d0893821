"""Maps over images."""

from __future__ import annotations

import io

import cv2
import numpy as np
import torch

from mm_vitbackbones.inspection import drawing
from mm_vitbackbones.ops.looking import Lattice


def test_a_pixel_has_the_value_of_the_nearest_cell() -> None:
    values = drawing.over_pixels(torch.tensor([[1.0, 2.0, 3.0]]), Lattice((1, 3)), 4.0, (2, 11))
    assert values.tolist() == [[1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]] * 2


def test_keys_of_a_reduced_grid_cover_the_cells_that_they_stand_for() -> None:
    cells = Lattice((1, 2), (2.0, 2.0), (1.0, 1.0))  # a remainder of the grid has the last one's value
    values = drawing.over_pixels(torch.tensor([[1.0, 2.0]]), cells, 2.0, (1, 10))
    assert values.tolist() == [[1] * 4 + [2] * 6]


def test_pooled_keys_are_around_their_centres() -> None:
    cells = Lattice((1, 2), (4.0, 4.0), (0.5, 0.5))
    values = drawing.over_pixels(torch.tensor([[1.0, 2.0]]), cells, 1.0, (1, 6))
    assert values.tolist() == [[1, 1, 2, 2, 2, 2]]


def test_weights_below_zero_are_blue_and_those_above_it_red() -> None:
    image = np.full((1, 3, 3), 128, np.uint8)
    drawn = drawing.heat(image, np.array([[-1.0, 0.0, 1.0]]), low=-1.0).astype(int)
    assert drawn[0, 0, 0] > drawn[0, 0, 2] + 50
    assert drawn[0, 2, 2] > drawn[0, 2, 0] + 50
    assert drawn[0, 1].tolist() == [128] * 3


def test_more_heat_is_brighter() -> None:
    drawn = drawing.heat(np.zeros((1, 3, 3), np.uint8), np.array([[0.0, 0.5, 1.0]]))
    assert np.all(np.diff(cv2.cvtColor(drawn, cv2.COLOR_BGR2GRAY)[0].astype(int)) > 0)


def test_many_panels_take_several_lines() -> None:
    image = np.zeros((40, 128, 3), np.uint8)
    few, many = (drawing.sheet([[("a", image)] * count]) for count in (drawing.MOST, drawing.MOST + 1))
    assert many.shape[1] == few.shape[1]
    assert len(many) == 2 * len(few)


def test_lines_by_layer_are_drawn_for_each_network() -> None:
    one = drawing.lines_by_layer({"a": [[1.0, 2.0], [2.0, 2.0]]}, "entropy")
    two = drawing.lines_by_layer({"a": [[1.0, 2.0], [2.0, 2.0]], "$b": [[0.5], [1.0], [3.0]]}, "entropy")
    shown = [cv2.imdecode(np.frombuffer(io.BytesIO(png).read(), np.uint8), cv2.IMREAD_COLOR) for png in (one, two)]
    assert shown[0].shape == shown[1].shape
    assert not np.array_equal(*shown)
