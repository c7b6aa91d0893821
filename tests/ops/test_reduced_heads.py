"""Queries of a grid, and keys and values of its reduction, on CUDA, in the form that a CPU can run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from mm_vitbackbones.layers import ConvReduction
from mm_vitbackbones.layers.attention import SpatialReductionAttention
from mm_vitbackbones.measuring import OperatorCount
from mm_vitbackbones.ops import context, reduced_heads

DIM, HEADS = 12, 3


@pytest.fixture(autouse=True)
def on_cuda() -> Iterator[None]:
    with context.pretend_device("cuda"):
        yield


@pytest.fixture
def layer() -> SpatialReductionAttention:
    torch.manual_seed(0)
    layer = SpatialReductionAttention(DIM, HEADS, ConvReduction(DIM, 2))
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer


def a_grid(height: int = 6, width: int = 8, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, height, width, DIM, dtype=dtype).requires_grad_()


def heads(layer: SpatialReductionAttention, grid: Tensor) -> tuple[Tensor, ...] | None:
    reduction = layer.reduction
    assert isinstance(reduction, ConvReduction)
    found = reduced_heads.heads(grid, layer.q, reduction, reduction.parts, layer.kv, layer.proj, HEADS)
    return None if found is None else found[0]


def separate(layer: SpatialReductionAttention, grid: Tensor) -> list[Tensor]:
    """By the modules, in their forms for a CPU."""
    with context.pretend_device("cpu"):
        maps = layer.q(grid), *layer.kv(layer.reduction(grid)).chunk(2, dim=-1)
    return [x.flatten(1, 2).unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in maps]


@pytest.mark.parametrize("size", [(6, 8), (7, 5), (2, 2)], ids=str)
@pytest.mark.parametrize(
    "frozen", ["", "q", "kv.bias", "reduction", "reduction.conv.bias", "reduction.norm.weight", "grid"]
)
def test_heads_have_the_values_and_gradients_of_the_modules(
    layer: SpatialReductionAttention, size: tuple[int, int], frozen: str
) -> None:
    grid = a_grid(*size).requires_grad_(frozen != "grid")
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(not (frozen and name.startswith(frozen)))
    wanted = [x for x in (grid, *layer.parameters()) if x.requires_grad and x not in set(layer.proj.parameters())]
    found, expected = heads(layer, grid), separate(layer, grid)
    assert found is not None
    torch.testing.assert_close([*found], expected)
    ours, theirs = (torch.autograd.grad(sum(x.square().sum() for x in y), wanted) for y in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(6, 8), (7, 5), (2, 2)], ids=str)
def test_in_inference_heads_have_the_values_of_the_modules(
    layer: SpatialReductionAttention, size: tuple[int, int]
) -> None:
    grid = a_grid(*size)
    with torch.no_grad():
        found = heads(layer, grid)
        assert found is not None
        torch.testing.assert_close([*found], separate(layer, grid), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reduction", [None, nn.Identity()], ids=["plain", "with a hook"])
@pytest.mark.parametrize("grad", [True, False])
def test_attention_to_the_grid_itself_has_the_values_of_the_modules(reduction: nn.Module | None, grad: bool) -> None:
    called: list[int] = []
    if reduction is not None:
        reduction.register_forward_hook(lambda *_: called.append(1))
    layer, grid = SpatialReductionAttention(DIM, HEADS, reduction), a_grid()
    with torch.set_grad_enabled(grad):
        ours = layer(grid)
        assert called == [1] * (reduction is not None)
        with context.pretend_device("cpu"):
            torch.testing.assert_close(ours, layer(grid), rtol=1e-5, atol=1e-5)


def test_under_autocast_heads_are_narrow_and_gradients_are_of_the_types_of_their_tensors(
    layer: SpatialReductionAttention,
) -> None:
    grid = a_grid()
    with torch.autocast("cpu", torch.bfloat16):
        found = heads(layer, grid)
    assert found is not None
    assert {x.dtype for x in found} == {torch.bfloat16}
    wanted = [grid, *layer.q.parameters(), *layer.kv.parameters(), *layer.reduction.parameters()]
    ours, theirs = (
        torch.autograd.grad(sum(x.float().square().sum() for x in y), wanted) for y in (found, separate(layer, grid))
    )
    assert {x.dtype for x in ours} == {torch.float32}
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= 2e-2 * b.norm()


def test_the_gradients_of_the_grid_are_added_up_in_one_pass(layer: SpatialReductionAttention) -> None:
    found = heads(layer, a_grid())
    assert found is not None
    grads = [torch.randn_like(x) for x in found]
    with OperatorCount() as count:
        torch.autograd.backward(found, grads)
    assert count.by_name["aten.add_"] == 1
    assert count.by_name["aten.add"] == count.by_name["aten.zeros"] == 0


@pytest.mark.parametrize("part", ["reduction", "reduction.conv", "reduction.norm", "q", "kv"])
def test_parts_with_a_hook_are_called(layer: SpatialReductionAttention, part: str) -> None:
    called = []
    layer.get_submodule(part).register_forward_hook(lambda *_: called.append(part))
    grid = a_grid()
    y = layer(grid)
    assert called == [part]
    with context.pretend_device("cpu"):
        torch.testing.assert_close(y, layer(grid), rtol=1e-4, atol=1e-5)


def test_what_has_no_form_here_is_left_to_the_modules(layer: SpatialReductionAttention) -> None:
    assert heads(layer.double(), a_grid(dtype=torch.float64)) is None
    layer.float()
    assert heads(layer, a_grid(1, 4)) is None
    layer.q.bias = None
    assert heads(layer, a_grid()) is None
