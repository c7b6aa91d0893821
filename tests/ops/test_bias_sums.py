"""Gradients of biases in compiled graphs for CUDA, on a CPU: those of the modules, without sums over wide rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.graphs import needs_graphs_that_run, noting
from mm_vitbackbones.backbones.swin import WindowAttention
from mm_vitbackbones.layers import FeedForward
from mm_vitbackbones.layers.attention import SelfAttention
from mm_vitbackbones.ops import attention, bias_sums, context

aten = torch.ops.aten
OURS = torch.ops.mm_vitbackbones
pytestmark = needs_graphs_that_run


@pytest.fixture(autouse=True)
def no_graphs() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)


def gradients(out: Tensor, x: Tensor, *modules: nn.Module) -> list[Tensor]:
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad(out, [x, *(p for module in modules for p in module.parameters())], weight)]


def test_gelu_after_a_linear_map_has_the_gradients_of_the_modules() -> None:
    layer, x = nn.Linear(5, 7).double(), torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    expected = gradients(F.gelu(layer(x)), x, layer)
    torch.testing.assert_close(gradients(bias_sums.linear_gelu(x, layer), x, layer), expected)


@pytest.mark.parametrize("biased", [False, True])
def test_maps_around_attention_have_the_gradients_of_the_modules(biased: bool) -> None:
    qkv, proj = nn.Linear(6, 18).double(), nn.Linear(6, 5).double()
    x = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    mask = torch.randn(1, 2, 4, 4, dtype=torch.float64) if biased else torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    expected = gradients(proj(attention.attend_with_bias(qkv(x), mask, 2)), x, qkv, proj)
    out = attention.attend_with_bias(bias_sums.to_queries_keys_values(x, qkv), mask, 2)
    found = gradients(bias_sums.project(out, proj, qkv), x, qkv, proj)
    torch.testing.assert_close(found, expected)
    assert not found[3][6:12].any()  # softmax does not depend on the keys' bias
    rows = torch.cat(bias_sums.queries_keys_values(x.flatten(0, 1), qkv), -1).view(3, 4, 18)
    found = gradients(bias_sums.project(attention.attend_with_bias(rows, mask, 2), proj, qkv), x, qkv, proj)
    torch.testing.assert_close(found, expected)


def graphs_of(module: nn.Module, x: Tensor) -> tuple[list[Tensor], list[Any]]:
    """The result and the gradients of a graph for CUDA of one size, and the nodes of its forward and backward pass."""
    graphs: list[list[Any]] = []
    with context.pretend_device("cuda"):
        out = torch.compile(module, backend=noting(graphs), fullgraph=True, dynamic=False)(x)
        found = gradients(out, x, module)
    return found, [node for nodes in graphs for node in nodes]


def widths_of_sums(nodes: list[Any]) -> list[int]:
    """The elements of what sums over rows add up to, where they are gradients of biases."""
    return [node.meta["val"].numel() for node in nodes if node.target is aten.sum.dim_IntList]


def test_a_graph_adds_up_no_hidden_rows() -> None:
    module, x = FeedForward(6, 20), torch.randn(2, 3, 6, requires_grad=True)
    expected = gradients(module(x), x, module)
    found, nodes = graphs_of(module, x)
    torch.testing.assert_close(found, expected)
    assert OURS.gelu_backward.default in {node.target for node in nodes}
    assert widths_of_sums(nodes) == [6]  # of fc2


def test_a_graph_of_self_attention_adds_up_the_queries_alone() -> None:
    module, x = SelfAttention(8, 2), torch.randn(2, 12, 8, requires_grad=True)
    expected = gradients(module(x), x, module)
    found, nodes = graphs_of(module, x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert 24 not in widths_of_sums(nodes)


@pytest.mark.parametrize("shift", [0, 2])
def test_a_graph_of_windows_joins_the_gradients_of_the_heads_as_a_matrix(shift: int) -> None:
    """Windows of the compiler's own have gaps, and would be copied for the linear map."""
    module, x = WindowAttention(8, 2, window_size=4, shift=shift), torch.randn(2, 9, 10, 8, requires_grad=True)
    expected = gradients(module(x), x, module)
    found, nodes = graphs_of(module, x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert 24 not in widths_of_sums(nodes)
    joined = [node.meta["val"].shape for node in nodes if node.target is aten.cat.default]
    assert [shape for shape in joined if len(shape) > 1] == [(2 * 9 * 16, 24)]
    assert aten.select_scatter.default not in {node.target for node in nodes}


def test_what_is_attached_to_a_map_is_called() -> None:
    module, x, seen = FeedForward(6, 20), torch.randn(2, 6, requires_grad=True), []
    module.fc1.register_forward_hook(lambda _, __, out: seen.append(out.shape))
    with context.pretend_device("cuda"):
        torch.compile(module, backend="aot_eager")(x)
    assert seen == [(2, 20)]


@pytest.mark.parametrize("part", ["fc1.bias", "all"])
def test_a_frozen_bias_gets_no_gradient(part: str) -> None:
    module, x = FeedForward(6, 20), torch.randn(2, 6, requires_grad=True)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(part not in (name, "all"))
    with context.pretend_device("cuda"):
        torch.compile(module, backend="aot_eager", fullgraph=True)(x).sum().backward()
    assert module.fc1.bias.grad is None
    assert (module.fc1.weight.grad is None) is (part == "all")


def test_elsewhere_the_modules_are_called() -> None:
    module, x = FeedForward(6, 20), torch.randn(2, 6, requires_grad=True)
    assert not bias_sums.is_for(x, module.fc1)  # eager
    graphs: list[list[Any]] = []
    torch.compile(module, backend=noting(graphs), fullgraph=True)(x).sum().backward()
    assert OURS.gelu_backward.default not in {node.target for nodes in graphs for node in nodes}


def test_a_graph_takes_biases_in_bf16_under_autocast_to_fp16() -> None:
    module, x = SelfAttention(6, 2).bfloat16(), torch.randn(2, 3, 6, requires_grad=True)
    with torch.autocast("cpu", torch.float16):
        found, _ = graphs_of(module, x)
        expected = gradients(module(x), x, module)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
