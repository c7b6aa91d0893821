"""Grids and tables of other sizes: as PyTorch resizes them, and in graphs that serve all sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter

from mm_vitbackbones.ops import context
from mm_vitbackbones.ops.resize import TableResize, pooled_to, resize_cells, resized_table


@pytest.fixture(autouse=True)
def no_graphs() -> None:
    torch._dynamo.reset()


def test_one_graph_pools_grids_of_all_sizes_as_pytorch_does() -> None:
    counter = CompileCounter()
    pool = torch.compile(lambda grid: pooled_to(grid, 7), backend=counter, fullgraph=True, dynamic=True)
    for height, width in ((8, 9), (3, 11), (20, 13), (7, 14), (50, 34)):
        grid = torch.randn(2, height, width, 5, dtype=torch.float64)
        expected = F.adaptive_avg_pool2d(grid.permute(0, 3, 1, 2), 7).permute(0, 2, 3, 1)
        torch.testing.assert_close(pool(grid), expected)
        torch.testing.assert_close(pooled_to(grid, 7), expected)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    "resize", [TableResize("bicubic"), TableResize("bicubic", True), TableResize("bicubic", offset=0.1)]
)
@pytest.mark.parametrize("size", [(5, 9), (3, 2), (4, 13), (1, 6)])
def test_on_cuda_a_table_is_resized_by_products_as_pytorch_does(resize: TableResize, size: tuple[int, int]) -> None:
    table = torch.randn(1, 4, 6, 3, dtype=torch.float64)
    expected = resize(table.permute(0, 3, 1, 2).contiguous(), *size).permute(0, 2, 3, 1)
    with context.pretend_device("cuda"):
        torch.testing.assert_close(resized_table(table, *size, resize), expected)


@pytest.mark.parametrize("cell", [14, 3.5, 20, 8, 28])
@pytest.mark.parametrize("stride", [4, 16, 32])
def test_cells_lie_where_their_pixels_are(cell: float, stride: int) -> None:
    """A value that grows with the pixels is what it is at the centres of the new cells, up to the last centre."""
    size = 5, 7
    rows, columns = ((torch.arange(n, dtype=torch.float64) + 0.5) * cell for n in size)
    grid = torch.stack((rows[:, None].expand(size), columns.expand(size)), dim=-1).unsqueeze(0)
    new = tuple(-(-int(n * cell) // stride) + 1 for n in size)
    resized = resize_cells(grid, cell, stride, new)
    assert resized.shape == (1, *new, 2)
    for axis, centres in enumerate((rows, columns)):
        expected = ((torch.arange(new[axis], dtype=torch.float64) + 0.5) * stride).clamp(centres[0], centres[-1])
        found = resized[0, :, 0, 0] if axis == 0 else resized[0, 0, :, 1]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * stride)
