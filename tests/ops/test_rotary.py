"""Rotary positions: the fewer passes of eager mode, against the formula."""

from __future__ import annotations

import pytest
import torch

from mm_vitbackbones.ops import rotary


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
    assert sum(t.numel() for t in kept) == 2 * 14 * 4
