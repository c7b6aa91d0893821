"""What an export traces equals what is computed otherwise."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mm_vitbackbones.layers import RelativeAttention
from mm_vitbackbones.ops import anysize, attention, context, resize
from mm_vitbackbones.ops.resize import TableResize


@pytest.fixture
def exporting(monkeypatch: pytest.MonkeyPatch):
    """A function that computes another one in the forms of exports."""

    def call(function, *arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(context, "is_exporting", lambda: True)
            return function(*arguments, **options)

    return call


@pytest.mark.parametrize(("length", "step", "cells"), [(1, 7, 1), (7, 7, 1), (8, 7, 2), (33, 16, 3)])
def test_what_a_length_lacks_fills_its_last_cell(length, step, cells):
    assert anysize.ceil_div(length, step) == cells
    assert length + anysize.lack(length, step) == cells * step


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 4), (9, 2), (40, 37)], ids=str)
@pytest.mark.parametrize(
    "way",
    [
        TableResize(),
        TableResize("bicubic"),
        TableResize("bicubic", offset=0.1),
        TableResize("bicubic", antialias=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("side", [1, 2, 4, 14])
def test_tables_are_resized_as_otherwise(exporting, side, way, size):
    table = torch.randn(1, side, side, 3)
    expected = resize.resized_table(table, *size, way)
    torch.testing.assert_close(exporting(resize.resized_table, table, *size, way), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("cell", "stride"), [(16, 4), (16, 8), (16, 32), (3.5, 4), (28, 32), (8, 8)])
@pytest.mark.parametrize("pixels", [(32, 33), (95, 161)], ids=str)
def test_cells_are_resized_as_otherwise(exporting, cell, stride, pixels):
    grid = torch.randn(2, *(-int(-side // cell) for side in pixels), 3)
    size = tuple(-(-side // stride) for side in pixels)
    expected = resize.resize_cells(grid, cell, stride, size)
    torch.testing.assert_close(exporting(resize.resize_cells, grid, cell, stride, size), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("ceil", [True, False])
def test_the_largest_cells_are_those_of_pytorch(exporting, ceil):
    grid = torch.randn(2, 5, 7, 3) - 5
    expected = F.max_pool2d(grid.permute(0, 3, 1, 2), 2, ceil_mode=ceil).permute(0, 2, 3, 1)
    assert torch.equal(exporting(resize.largest_of, grid, 2, ceil), expected)


@pytest.mark.parametrize(("side", "key_side"), [(7, 7), (4, 2), (5, 3), (13, 4), (3, 5), (17, 1), (1, 1)])
@pytest.mark.parametrize("places", [7, 25])
def test_distances_have_the_same_entries(exporting, side, key_side, places):
    table = torch.randn(places, 3)
    expected = attention.by_distance(table, side, key_side)
    torch.testing.assert_close(exporting(attention.by_distance, table, side, key_side), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(2, 4), (5, 3), (8, 8)], ids=str)
def test_windows_with_distances_give_the_same(exporting, size):
    torch.manual_seed(0)
    module = RelativeAttention(16, 2, window_size=4, table_size=4).eval()
    for table in (module.rows, module.columns):
        torch.nn.init.normal_(table)
    grid = torch.randn(2, *size, 16)
    with torch.no_grad():
        torch.testing.assert_close(exporting(module, grid), module(grid), rtol=0, atol=1e-5)
