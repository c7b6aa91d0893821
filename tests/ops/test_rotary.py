"""Rotary positions: the fewer passes of eager mode, against the formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.layers import RotaryAttention
from mm_vitbackbones.measuring import OperatorCount, held_bytes
from mm_vitbackbones.ops import context, rotary


def turned(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, the same by ``rotate``, and by the formula."""
    torch.manual_seed(0)
    tokens = torch.randn(2, 14, 24, dtype=dtype, requires_grad=True)
    periods = torch.tensor([1.0, 3.0], dtype=torch.promote_types(dtype, torch.float32))
    rotation = rotary.rotation(periods, 3, 4, others=2)
    expected = rotary.reference(tokens.unflatten(-1, (3, 2, -1)), *rotation).flatten(-3)
    return tokens, rotary.rotate(tokens, rotation, 3), expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_tokens_and_gradients_are_those_of_the_formula(dtype: torch.dtype) -> None:
    tokens, fast, expected = turned(dtype)
    torch.testing.assert_close(fast, expected)
    grad = torch.randn_like(fast)
    ours, theirs = (torch.autograd.grad(y, tokens, grad)[0] for y in (fast, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_tokens_and_gradients_in_graphs_are_those_of_the_formula(dtype: torch.dtype) -> None:
    tokens, _, expected = turned(dtype)
    rotation = rotary.rotation(torch.tensor([1.0, 3.0], dtype=torch.promote_types(dtype, torch.float32)), 3, 4, 2)
    with torch.autocast("cpu", torch.bfloat16), pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "is_eager", lambda: False)
        found = rotary.rotate(tokens, rotation, 3)
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad(y, tokens, grad)[0] for y in (found, expected))
    torch.testing.assert_close(ours, theirs)


class _Turning(nn.Module):
    def forward(self, tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return rotary.rotate(tokens, rotary.Rotation(cos, sin), 3)


def test_an_exported_graph_turns_tokens_by_few_operators() -> None:
    tokens, _, expected = turned(torch.float32)
    rotation = rotary.rotation(torch.tensor([1.0, 3.0]), 3, 4, others=2)
    program = torch.export.export(_Turning(), (tokens.detach(), *rotation), strict=False)
    torch.testing.assert_close(program.module()(tokens, *rotation), expected)
    assert sum(node.op == "call_function" for node in program.graph.nodes) <= 6  # two of them are views


def test_other_tokens_do_not_turn_and_lengths_stay() -> None:
    tokens, fast, _ = turned(torch.float64)
    torch.testing.assert_close(fast[:, :2], tokens[:, :2])
    torch.testing.assert_close(fast.norm(dim=-1), tokens.norm(dim=-1))
    assert not torch.allclose(fast[:, 2:], tokens[:, 2:])


def test_the_gradient_has_a_gradient() -> None:
    tokens, fast, expected = turned(torch.float64)
    weight = torch.randn_like(fast, requires_grad=True)
    ours, theirs = (
        torch.autograd.grad(torch.autograd.grad(y, tokens, weight, create_graph=True)[0].square().sum(), weight)[0]
        for y in (fast, expected)
    )
    torch.testing.assert_close(ours, theirs)


def test_no_tokens_are_kept() -> None:
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        tokens, *_ = turned(torch.float32)
        del kept[:]
        rotation = rotary.rotation(torch.ones(2), 3, 4, others=2)
        rotary.rotate(tokens, rotation, 3)
    assert sum(t.numel() for t in kept) == 14 * (4 + 8)  # the angles alone, which all blocks share


# ---- with the linear maps before it, on CUDA


def layer_and_inputs(bias: bool = True, **options: Any) -> tuple[RotaryAttention, Tensor, rotary.Rotation]:
    torch.manual_seed(1)
    layer = RotaryAttention(24, 3, bias).to(**options)
    periods = torch.tensor([1.0, 3.0], dtype=torch.promote_types(layer.q.weight.dtype, torch.float32))
    tokens = torch.randn(2, 14, 24, requires_grad=True, **options)
    return layer, tokens, rotary.rotation(periods, 3, 4, others=2)


def by_formula(layer: RotaryAttention, tokens: Tensor, rotation: rotary.Rotation) -> Tensor:
    query, key, value = (each(tokens).unflatten(-1, (3, 2, -1)) for each in (layer.q, layer.k, layer.v))
    query, key = (rotary.reference(each, *rotation) for each in (query, key))
    query, key, value = (each.flatten(-2).transpose(1, 2) for each in (query, key, value))
    return layer.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", ["", "q", "k.weight", "v", "tokens", "all"])
def test_attention_on_cuda_has_the_values_and_gradients_of_the_formula(bias: bool, frozen: str) -> None:
    layer, tokens, rotation = layer_and_inputs(bias, dtype=torch.float64)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen) if frozen else True)
        parameter.requires_grad_(parameter.requires_grad and not (frozen == "all" and not name.startswith("proj")))
    tokens.requires_grad_(frozen != "tokens")
    expected = by_formula(layer, tokens, rotation)
    with context.pretend_device("cuda"):
        found = layer(tokens, rotation)
        with torch.no_grad():
            torch.testing.assert_close(layer(tokens, rotation), expected)
    torch.testing.assert_close(found, expected)
    wanted = [x for x in (tokens, *layer.parameters()) if x.requires_grad]
    ours, theirs = (torch.autograd.grad(y.square().sum(), wanted) for y in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_queries_keys_and_values_on_cuda_are_one_product_and_are_turned_in_few_passes() -> None:
    layer, tokens, rotation = layer_and_inputs()
    with context.pretend_device("cuda"), torch.autocast("cpu", torch.bfloat16):
        with OperatorCount() as count:
            heads = rotary.to_heads(tokens, (layer.q, layer.k, layer.v), rotation, 3)
        assert heads is not None
        assert [count.by_name[f"aten.{name}"] for name in ("addmm", "mul", "flip", "addcmul")] == [1, 1, 1, 1]
        kept = held_bytes(lambda: rotary.to_heads(tokens, (layer.q, layer.k, layer.v), rotation, 3))
    # In bf16: the tokens, the joint weight, and the heads, which are views of one map.
    assert kept <= 2 * (tokens.numel() * (1 + 3) + 3 * 24 * 24) + 500


def test_under_autocast_attention_on_cuda_is_near_the_formula_with_gradients_of_the_types_of_the_weights() -> None:
    layer, tokens, rotation = layer_and_inputs()
    exact = by_formula(layer, tokens, rotation)
    with context.pretend_device("cuda"), torch.autocast("cpu", torch.bfloat16):
        found = layer(tokens, rotation)
    assert found.dtype == torch.bfloat16
    ours, theirs = (
        torch.autograd.grad(y.float().square().sum(), [tokens, *layer.parameters()]) for y in (found, exact)
    )
    assert {grad.dtype for grad in ours} == {torch.float32}
    for one, other in zip((found, *ours), (exact, *theirs), strict=True):
        assert (one - other).norm() <= 3e-2 * other.norm()


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_on_cuda_a_linear_map_with_a_hook_is_called(name: str) -> None:
    layer, tokens, rotation = layer_and_inputs()
    calls: list[nn.Module] = []
    layer.get_submodule(name).register_forward_hook(lambda module, *_: calls.append(module))
    with context.pretend_device("cuda"):
        torch.testing.assert_close(layer(tokens, rotation), by_formula(layer, tokens, rotation))
    assert len(calls) == 2
