"""Grids and tables of other sizes: as PyTorch resizes them, and in graphs that serve all sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

from helpers.agreement import deterministic
from helpers.graphs import needs_graphs_that_run, noting
from mm_vitbackbones.ops import context, resize
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


@needs_graphs_that_run
@pytest.mark.parametrize("resize", [TableResize(), TableResize("bicubic"), TableResize("bicubic", offset=0.1)], ids=str)
@pytest.mark.parametrize("size", [(5, 9), (3, 2), (1, 6)], ids=str)
def test_a_training_graph_for_cuda_holds_products_in_place_of_a_resize(resize: TableResize, size: tuple) -> None:
    table, graphs = torch.randn(1, 4, 6, 3, dtype=torch.float64, requires_grad=True), []
    compiled = torch.compile(lambda table: resized_table(table, *size, resize), backend=noting(graphs), fullgraph=True)
    with context.pretend_device("cuda"):
        found = compiled(table)
    expected = resize(table.permute(0, 3, 1, 2).contiguous(), *size).permute(0, 2, 3, 1)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected)
    torch.testing.assert_close(*(torch.autograd.grad(result, table, weight) for result in (found, expected)))
    targets = {str(node.target) for nodes in graphs for node in nodes}
    assert not [name for name in targets if "upsample" in name or "index" in name]


SCALED, SMOOTHED = TableResize("bicubic", offset=0.1), TableResize("bicubic", antialias=True)


@needs_graphs_that_run
def test_one_graph_resizes_a_table_by_scales_to_all_sizes() -> None:
    table, counter = torch.randn(1, 4, 6, 2), CompileCounter()
    compiled = torch.compile(lambda size: resized_table(table, *size.shape, SCALED), backend=counter, dynamic=True)
    for size in ((5, 9), (3, 2), (8, 7)):
        grid = torch.empty(size)
        torch.testing.assert_close(compiled(grid), resized_table(table, *size, SCALED))
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.parametrize("resize", [SCALED, SMOOTHED], ids=str)
def test_one_training_graph_resizes_a_table_to_all_sizes(resize: TableResize) -> None:
    table, graphs = torch.randn(1, 4, 6, 2, dtype=torch.float64, requires_grad=True), []

    def add(grid: torch.Tensor) -> torch.Tensor:
        return grid + resized_table(table, *grid.shape[1:3], resize)

    compiled = torch.compile(add, backend=noting(graphs), fullgraph=True, dynamic=True)
    for size in ((5, 9), (3, 2), (8, 7)):
        grid = torch.randn(1, *size, 2, dtype=torch.float64)
        found, expected = compiled(grid), add(grid)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(*(torch.autograd.grad(result, table, grid) for result in (found, expected)))
    assert len(graphs) == 2  # with that of the backward pass


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


CELLS = [((5, 7), (17, 25), 4), ((5, 7), (9, 12), 8), ((8, 7), (7, 6), 16), ((2, 3), (2, 2), 32), ((3, 4), (3, 2), 16)]
"""Old cells of 14 pixels, new cells and their pixels: more, as many or fewer lines, and some beyond the old ones."""


@pytest.mark.parametrize(("before", "after", "stride"), CELLS)
def test_gradients_of_cells_are_exact(before: tuple[int, int], after: tuple[int, int], stride: int) -> None:
    grid = torch.randn(2, *before, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda grid: resize_cells(grid, 14, stride, after), grid)
    assert torch.autograd.gradgradcheck(lambda grid: resize_cells(grid, 14, stride, after), grid, fast_mode=True)
    assert torch.autograd.gradcheck(lambda grid: resize.resized(grid, *after, 14 / stride), grid)
    assert torch.autograd.gradcheck(lambda grid: resize.resized(grid, *after, None), grid)


@pytest.mark.parametrize(("before", "after", "stride"), CELLS)
def test_where_gradients_are_to_repeat_cuda_has_products(
    before: tuple[int, int], after: tuple[int, int], stride: int
) -> None:
    grid = torch.randn(2, *before, 3, requires_grad=True)
    expected = resize_cells(grid, 14, stride, after)
    with context.pretend_device("cuda"), deterministic():
        found = resize_cells(grid, 14, stride, after)
    torch.testing.assert_close(found, expected)
    assert "Upsample" in names(expected)
    assert "Upsample" not in names(found)


def names(result: torch.Tensor) -> str:
    """Of the functions that compute its gradient."""
    found, left = [], [result.grad_fn]
    while left:
        function = left.pop()
        if function is not None:
            found.append(function.name())
            left += [next for next, _ in function.next_functions]
    return " ".join(found)


def test_one_graph_resizes_cells_whether_or_not_some_are_left_out() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda grid, height, width: resize_cells(grid, 14, 4, (height, width)), backend=counter)
    for before, after in (((4, 5), (13, 17)), ((4, 6), (14, 21)), ((6, 4), (19, 14)), ((8, 10), (28, 34))):
        of_compiled = torch.randn(2, *before, 3, dtype=torch.float64, requires_grad=True)
        grid = of_compiled.detach().requires_grad_()
        torch._dynamo.maybe_mark_dynamic(of_compiled, (1, 2))
        found, expected = compiled(of_compiled, *after), resize_cells(grid, 14, 4, after)
        torch.testing.assert_close(found, expected)
        for result in (found, expected):
            (result * torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view_as(result)).sum().backward()
        torch.testing.assert_close(of_compiled.grad, grid.grad)
    assert counter.frame_count <= 2  # the first has numbers in place of the new sizes


@needs_graphs_that_run
def test_a_graph_resizes_a_grid_by_one_operator() -> None:
    counter = CompileCounter()
    compiled = torch.compile(resize.resize_grid, backend=counter, fullgraph=True, dynamic=True)
    for size in ((6, 11), (3, 4), (9, 2)):
        grid = torch.randn(2, 5, 7, 3)
        torch.testing.assert_close(compiled(grid, *size), resize.resize_grid(grid, *size))
    assert counter.frame_count == 1
    assert counter.op_count == 1
