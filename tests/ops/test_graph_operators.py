"""Operators that compiled graphs hold in place of arithmetic of sizes: equal to the plain forms, at any size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from helpers.agreement import build, gradient_error, gradients, image
from helpers.graphs import needs_graphs_that_run, noting
from helpers.toys import TOYS
from mm_vitbackbones.backbones.swin import WindowAttention
from mm_vitbackbones.ops import attention, context, pooling, windows

pytestmark = needs_graphs_that_run
OURS = torch.ops.mm_vitbackbones
DEPTHWISE = (
    [torch.randn(2, 1, 3, 3, requires_grad=True), torch.randn(3, 1, 5, 5, requires_grad=True)],
    [torch.randn(2, requires_grad=True), torch.randn(3, requires_grad=True)],
)
"""Weights and biases of two convolutions, of 2 and 3 channels."""
OF_LEVELS = (
    [torch.randn(3, 1, 3, 3, requires_grad=True) for _ in range(2)],
    [torch.randn(3, requires_grad=True) for _ in range(2)],
)
"""The same of two levels, of 3 channels each."""
OF_ROWS = {OURS.depthwise.default, OURS.depthwise_of_rows.default, OURS.factorized_attend.default}


@pytest.fixture(autouse=True)
def no_graphs() -> None:
    torch._dynamo.reset()


def agree(found: Tensor, expected: Tensor, source: Tensor) -> None:
    """Results are equal, and their memory and gradients are."""
    assert torch.equal(found, expected)
    weight = torch.randn_like(found)
    one, other = (torch.autograd.grad(x, source, weight)[0] for x in (found, expected))
    torch.testing.assert_close(one, other)
    assert one.stride() == source.stride()


@pytest.mark.parametrize(("side", "key_side"), [(4, 4), (6, 6), (9, 3), (3, 7), (4, 2)])
def test_entries_of_a_table_by_distance(side: int, key_side: int) -> None:
    table = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    agree(attention.distances(table, side, key_side), attention.by_distance(table, side, key_side), table)


@pytest.mark.parametrize(("size", "dims"), [((7, 9), (2, 4)), ((8, 8), (2, 3)), ((4, 4), (1, 3))], ids=str)
def test_windows_of_a_grid_and_back(size: tuple[int, int], dims: tuple[int, int]) -> None:
    counts = -(-size[0] // 4), -(-size[1] // 4)
    heads = torch.randn(2, *size, *dims, dtype=torch.float64, requires_grad=True)
    cut = pooling.cut(heads, 4, counts)
    agree(pooling.cut_windows(heads, 4, *counts), cut, heads)
    rows = cut.detach().requires_grad_()
    agree(pooling.join_windows(rows, 4, 2, *counts, *size), pooling.joined(rows, 4, 2, *size), rows)


@pytest.mark.parametrize("size", [(7, 9), (8, 8), (3, 4)], ids=str)
@pytest.mark.parametrize("shift", [0, 1, 2])
def test_shifted_windows_of_a_grid_and_back(size: tuple[int, int], shift: int) -> None:
    counts = -(-size[0] // 4), -(-size[1] // 4)
    grid = torch.randn(2, *size, 3, dtype=torch.float64, requires_grad=True)
    cut = windows._cut(grid, 4, shift, *counts)
    agree(windows.cut_grid(grid, 4, shift, *counts), cut, grid)
    rows = cut.detach().requires_grad_()
    sizes = 4, shift, 2, *counts, *size
    agree(windows.join_grid(rows, *sizes), windows._joined(rows, *sizes), rows)


@pytest.mark.parametrize("counts", [(1, 1), (1, 3), (2, 1), (4, 2)], ids=str)
def test_biases_of_each_window(counts: tuple[int, int]) -> None:
    bias = torch.randn(4, 2, 9, 9, dtype=torch.float64, requires_grad=True)
    expected = bias[windows._groups(*counts, bias.device)].repeat(2, 1, 1, 1)
    found = windows.window_biases(bias, torch.float64, 2, *counts)
    assert found.stride(-2) == 16  # CUDA's kernels want rows of a multiple of 8 elements
    agree(found, expected, bias)
    narrow = windows.window_biases(bias, torch.bfloat16, 2, *counts)
    assert torch.equal(narrow, expected.bfloat16())
    # As many sums as windows, each of them exact in the wider type alone.
    (gradient,) = torch.autograd.grad(narrow, bias, torch.full_like(narrow, 1 + 2**-7))
    assert gradient.sum() == 2 * counts[0] * counts[1] * 2 * 81 * (1 + 2**-7)


@pytest.mark.parametrize(("side", "shift"), [(4, 2), (3, 0)])
def test_the_bias_of_windows(side: int, shift: int) -> None:
    table = torch.randn((2 * side - 1) ** 2, 2, dtype=torch.float64, requires_grad=True)
    found, expected = windows.window_bias(table, side, shift), windows.bias_of(table, side, shift)
    assert found.stride() == expected.stride()
    agree(found, expected, table)


def test_an_operator_keeps_nothing_in_the_memory_of_a_cuda_graph() -> None:
    table = torch.randn(25, 2, requires_grad=True)
    windows.kept_constants.latest.clear()
    for device, kept in (("cuda", 0), ("cpu", 2)):  # with the shift and, for the gradient, without
        with context.pretend_device(device):
            windows.window_bias(table, 3, 1).sum().backward()
        assert len(windows.kept_constants.latest) == kept


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by PyTorch's check, of 2.14
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("distances", (torch.randn(7, 3), 6, 4)),
        ("cut_windows", (torch.randn(1, 4, 4, 1, 3), 4, 1, 1)),
        ("join_windows", (torch.randn(1, 1, 16, 3), 4, 1, 1, 1, 4, 4)),
        ("cut_grid", (torch.randn(1, 4, 4, 3), 4, 0, 1, 1)),
        ("join_grid", (torch.randn(1, 16, 3), 4, 0, 1, 1, 1, 4, 4)),
        ("window_biases", (torch.randn(4, 2, 9, 9), torch.float32, 1, 1, 2)),
        ("window_bias", (torch.randn(25, 2), 3, 1)),
        ("area_shares", (torch.randn(1), 9, 7)),
        ("line_shares", (torch.randn(0), 5, 7, "bicubic", False, 0.1)),
        ("resized", (torch.randn(2, 5, 7, 3), 17, 25, 3.5)),
        ("resized", (torch.randn(2, 5, 7, 3), 5, 6, 0.875)),
        ("resized", (torch.randn(2, 5, 7, 3), 6, 7, None)),
        ("resized_backward", (torch.randn(2, 17, 25, 3), 5, 7, 3.5)),
        ("depthwise", (torch.randn(2, 4, 5, 5), *DEPTHWISE, False, True)),
        ("depthwise", (torch.randn(2, 4, 5, 5), *DEPTHWISE, True, False)),
        ("depthwise_of_rows", (torch.randn(2 * 21 + 2 * 7, 3), [2, 4, 5, 2, 2, 3], *OF_LEVELS)),
        ("factorized_attend", (torch.randn(2 * 6 + 2, 32), torch.randn(14, 16), torch.randn(12, 16), 2, 2)),
        ("gelu_backward", (torch.randn(3, 5), torch.randn(3, 5))),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_pytorch_finds_no_fault_in_an_operator(name: str, arguments: tuple[Any, ...]) -> None:
    if name not in ("area_shares", "line_shares", "gelu_backward", "resized_backward"):
        arguments[0].requires_grad_()
    torch.library.opcheck(getattr(OURS, name).default, arguments)


def test_one_graph_attends_in_windows_of_grids_of_all_sizes() -> None:
    counter = CompileCounter()
    compiled = torch.compile(pooling.attend, backend=counter, fullgraph=True, dynamic=True)
    tables = torch.randn(2, 7, 4, dtype=torch.float64)
    for height, width in ((10, 17), (9, 9), (22, 13)):
        grids = [torch.randn(2, -(-height // s), -(-width // s), 3, 4, dtype=torch.float64) for s in (1, 2, 2)]
        torch.testing.assert_close(compiled(*grids, *tables, (4, 2)), pooling.attend(*grids, *tables, (4, 2)))
    assert counter.frame_count == 1


def test_one_graph_attends_in_shifted_windows_of_grids_of_all_sizes() -> None:
    counter = CompileCounter()
    attention = WindowAttention(8, 2, window_size=4, shift=2).double()
    compiled = torch.compile(attention, backend=counter, fullgraph=True, dynamic=True)
    for height, width in ((10, 17), (9, 9), (3, 13), (8, 12)):
        grid = torch.randn(2, height, width, 8, dtype=torch.float64)
        torch.testing.assert_close(compiled(grid), attention(grid))
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("toy", "operators"),
    [
        pytest.param("pvt_v2", {OURS.depthwise.default}, marks=pytest.mark.slow),
        ("coat_lite", OF_ROWS),
        pytest.param("coat", OF_ROWS, marks=pytest.mark.slow),
        pytest.param("swin", {OURS.window_bias.default, OURS.window_biases.default}, marks=pytest.mark.slow),
        ("pvt", {OURS.line_shares.default}),
    ],
)
def test_the_graph_of_a_network_on_cuda_for_one_size(toy: str, operators: set[Any]) -> None:
    """Depthwise convolutions and factorised attention are operators, tiles and tables are products, windows of a known
    size are views."""
    torch.manual_seed(0)
    network, image = TOYS[toy](drop_path_rate=0.0).train(), torch.randn(2, 3, 72, 80)
    graphs: list[list[Any]] = []

    def levels_and_gradients(function: Any) -> list[Tensor]:
        levels = function(image)
        weights = [torch.linspace(-1, 1, level.numel()).view_as(level) for level in levels]
        gradients = torch.autograd.grad(levels, [*network.parameters()], weights)
        return [*levels, *gradients]

    expected = levels_and_gradients(network)
    with context.pretend_device("cuda"):
        compiled = torch.compile(network, backend=noting(graphs), fullgraph=True, dynamic=False)
        for one, other in zip(levels_and_gradients(compiled), expected, strict=True):
            assert (one - other).norm() <= 1e-4 * other.norm() + 1e-6
    found = {node.target for nodes in graphs for node in nodes}
    ours = {node for node in found if getattr(node, "namespace", "") == "mm_vitbackbones"}
    assert {node for node in ours if "backward" not in node.name()} == operators
    assert (torch.ops.aten.convolution.default in found) is (toy == "pvt_v2")  # whose patches overlap


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # the compiler's own
@pytest.mark.parametrize("with_cp", [False, True], ids=["kept", "computed again"])
@pytest.mark.parametrize("toy", ["coat_lite", "coat"])
def test_graphs_of_single_blocks_put_class_tokens_and_grids_into_rows(toy: str, with_cp: bool) -> None:
    network, plain = (build(toy, with_cp=with_cp) for _ in range(2))
    graphs: list[list[Any]] = []
    assert network.compile_blocks(backend=noting(graphs), fullgraph=True)
    for size in ((75, 101), (96, 64), (64, 128)):
        x, known = image(*size), len(graphs)
        with context.pretend_device("cuda"):
            found = gradients(network, x)
        assert gradient_error(found, gradients(plain, x)) < 1e-5
    assert len(graphs) == known  # one more graph serves all sizes
    assert {node.target for nodes in graphs for node in nodes} >= OF_ROWS
