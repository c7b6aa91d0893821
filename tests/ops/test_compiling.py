"""Options for compilers. What is compiled with them: tests/backbones/test_compile_blocks.py."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from mm_vitbackbones.ops import compiling


def for_any_size(options: dict[str, Any]) -> dict[str, Any]:
    """Without the pass, which is no plain value."""
    found = compiling.for_any_size(options)
    if "options" in found:
        found["options"].pop("post_grad_custom_post_pass")
    return found


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"options": {"layout_optimization": False}}),
        ({"fullgraph": True, "mode": None}, {"fullgraph": True, "options": {"layout_optimization": False}}),
        (
            {"backend": "inductor", "options": {"layout_optimization": True, "max_autotune": True}},
            {"backend": "inductor", "options": {"layout_optimization": True, "max_autotune": True}},
        ),
        ({"backend": "eager", "mode": "default"}, {"backend": "eager", "mode": "default"}),
    ],
    ids=str,
)
def test_options_for_pytorchs_compiler_leave_memory_formats_alone(
    given: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert for_any_size(given) == expected


def test_a_mode_stands_for_its_options() -> None:
    found = for_any_size({"mode": "reduce-overhead", "dynamic": True})
    assert "mode" not in found
    assert found["dynamic"] is True
    assert found["options"] == {"layout_optimization": False, "triton.cudagraphs": True}


def test_an_unknown_mode_is_no_missing_compiler() -> None:
    with pytest.raises(RuntimeError, match="Unrecognized mode=fastest"):
        for_any_size({"mode": "fastest"})


def test_networks_are_imported_without_what_older_versions_of_pytorch_lack() -> None:
    """Those parts of PyTorch of today that need it come first."""
    program = (
        "import sys, torch, torch._dynamo, torch.distributed._functional_collectives, torch.fx.experimental\n"
        "del torch.library.register_fake, torch.library.register_autograd, torch.fx.experimental._config\n"
        "sys.modules['torch.fx.experimental._config'] = None\n"
        "import mm_vitbackbones.backbones"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("mask", [(True, True, True), (False, True, False), (True, False, True)], ids=str)
def test_our_operator_is_the_backward_pass_of_a_convolution(groups: int, mask: tuple[bool, ...]) -> None:
    x = torch.randn(2, 9, 7, 8).permute(0, 3, 1, 2)
    weight = torch.randn(8, 8 // groups, 3, 3)
    grad = torch.randn_like(torch.nn.functional.conv2d(x, weight, None, 2, 1, 1, groups))
    arguments = (grad, x, weight, [2, 2], [1, 1], [1, 1], groups, [*mask])
    operator = torch.ops.mm_vitbackbones.convolution_backward.default
    torch.library.opcheck(operator, arguments)
    rest = ([8], [2, 2], [1, 1], [1, 1], False, [0, 0], groups, [*mask])
    expected = torch.ops.aten.convolution_backward(grad, x, weight, *rest)
    for found, wanted, is_asked in zip(operator(*arguments), expected, mask, strict=True):
        assert torch.equal(found, wanted) if is_asked else found.numel() == 0


def test_backward_passes_of_convolutions_become_our_operator_in_a_graph() -> None:
    x, weight = torch.randn(1, 9, 7, 8).permute(0, 3, 1, 2), torch.randn(8, 8, 3, 3)

    def gradients(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> Any:
        rest = ([8], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, True])
        return torch.ops.aten.convolution_backward(grad, x, weight, *rest)

    grad = torch.randn(1, 8, 9, 7)
    traced = torch.fx.experimental.proxy_tensor.make_fx(gradients, tracing_mode="fake")(grad, x, weight)
    compiling.call_convolutions(traced.graph)
    traced.recompile()
    targets = [node.target for node in traced.graph.nodes if "convolution" in str(node.target)]
    assert targets == [torch.ops.mm_vitbackbones.convolution_backward.default]
    for found, wanted in zip(traced(grad, x, weight), gradients(grad, x, weight), strict=True):
        assert torch.equal(found, wanted)


class Sizes(torch.nn.Module):
    """Adds a number that depends on the size, and keeps how often it was traced."""

    def forward(self, grid: torch.Tensor) -> torch.Tensor:
        return grid * grid.shape[1] + grid.shape[2]


def call(module: torch.nn.Module, grid: torch.Tensor) -> torch.Tensor:
    return module(grid)


def graphs_for(shapes: list[tuple[int, ...]], **options: Any) -> int:
    torch._dynamo.reset()
    counter, module = CompileCounter(), Sizes()
    ((function, _),) = compiling.compiled({module: 0}, call, backend=counter, fullgraph=True, **options)
    for shape in shapes:
        grid = torch.randn(shape)
        assert torch.equal(function(module, grid), module(grid))
    torch._dynamo.reset()
    return counter.frame_count


HEIGHTS, SQUARE, WIDTHS = [(2, 6, 9, 4), (2, 7, 9, 4)], (2, 8, 8, 4), (2, 7, 5, 4)


@pytest.mark.parametrize("second", [HEIGHTS[1], SQUARE, WIDTHS], ids=str)
def test_the_second_size_makes_the_graph_for_any(second: tuple[int, ...]) -> None:
    assert graphs_for([HEIGHTS[0], second, *HEIGHTS, SQUARE, WIDTHS]) == 2


def test_a_graph_for_any_batch_serves_any_size_too() -> None:
    assert graphs_for([HEIGHTS[0], (3, *HEIGHTS[0][1:]), (5, *SQUARE[1:]), WIDTHS]) == 2


def test_one_size_has_one_graph() -> None:
    assert graphs_for([SQUARE] * 3) == 1


def test_graphs_for_each_size_can_be_asked_for() -> None:
    assert graphs_for([*HEIGHTS, SQUARE], dynamic=False) == 3


def test_the_first_graph_is_for_any_size_if_asked_for() -> None:
    assert graphs_for([*HEIGHTS, SQUARE, WIDTHS, (3, *SQUARE[1:])], dynamic=True) == 1


def test_graphs_get_draws_that_are_no_views() -> None:
    factors, grid = torch.rand(5, 2).unbind(), torch.randn(2, 8, 9, 4)
    found, same = compiling.AnySize(lambda module, *inputs: inputs)(Sizes(), factors, grid)
    assert same is grid
    assert all(factor._is_view() for factor in factors)
    assert not any(factor._is_view() or factor.storage_offset() for factor in found)
    assert all(map(torch.equal, found, factors))


def test_a_graph_is_for_any_size_of_grids_in_a_mapping() -> None:
    def total(module: torch.nn.Module, levels: dict[int, tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        return sum(module(grid).sum() + token.sum() for token, grid in levels.values())

    torch._dynamo.reset()
    counter, module = CompileCounter(), Sizes()
    ((function, _),) = compiling.compiled({module: 0}, total, backend=counter, fullgraph=True, dynamic=True)
    for height, width in ((2, 4), (6, 3), (5, 5)):  # two is the batch, too
        levels = {i: (torch.randn(2, 1, 4), torch.randn(2, height * i, width * i, 4)) for i in (1, 2)}
        torch.testing.assert_close(function(module, levels), total(module, levels))
    assert counter.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_graph_serves_an_entry_that_is_repeated_too() -> None:
    torch._dynamo.reset()
    counter, module, token = CompileCounter(), Sizes(), torch.randn(1, 6, 9, 4, requires_grad=True)
    ((function, _),) = compiling.compiled({module: 0}, call, backend=counter, fullgraph=True)
    for batch in (token.expand(3, -1, -1, -1), token.repeat(3, 1, 1, 1)):
        (gradient,) = torch.autograd.grad(function(module, batch).sum(), token)
        assert torch.equal(gradient, torch.full_like(token, 3 * 6))
    assert counter.frame_count == 1
    torch._dynamo.reset()
