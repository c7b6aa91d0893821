"""Attention to a few positions per level."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers.operators import over_plain, recorded, with_gradients

pytestmark = pytest.mark.mmdet
SHAPES = torch.tensor([[3, 4], [2, 1]])
STARTS = torch.tensor([0, 12])


def case(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Values, locations (some of them outside of the maps) and weights: 14 tokens, 3 queries, 2 heads, 2 points."""
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, 14, 2, 3, generator=generator, dtype=torch.float64)
    locations = torch.rand(2, 3, 2, 2, 2, 2, generator=generator, dtype=torch.float64) * 1.6 - 0.3
    weights = torch.rand(2, 3, 2, 2, 2, generator=generator, dtype=torch.float64)
    return [value.to(dtype), locations.to(dtype), weights.to(dtype)]


def attend(monkeypatch: pytest.MonkeyPatch, shapes: Tensor = SHAPES, starts: Tensor = STARTS):
    function = over_plain("multi_scale_deform_attn", monkeypatch).MultiScaleDeformableAttnFunction.apply
    return lambda value, locations, weights: function(value, shapes, starts, locations, weights, 64)


def test_recorded_values_and_gradients(monkeypatch):
    of = recorded("mmcv_ops_learnt_positions.npz")["ms_deform_attn/two_levels"]
    shapes = of["in_shapes"]
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
    leaves = [of[f"in_{name}"].clone().requires_grad_() for name in ("value", "locations", "weights")]
    output = attend(monkeypatch, shapes, starts)(*leaves)
    torch.testing.assert_close(output, of["out0"], rtol=0, atol=1e-5)
    (output * of["in_w"]).sum().backward()
    for leaf, name in zip(leaves, ("value", "locations", "weights"), strict=True):
        torch.testing.assert_close(leaf.grad, of[f"grad_{name}"], rtol=0, atol=1e-4)


def test_gradients_are_those_of_differences(monkeypatch):
    inputs = [tensor.requires_grad_() for tensor in case()]
    assert torch.autograd.gradcheck(attend(monkeypatch), inputs)


def test_a_position_at_a_corner_of_the_map_reads_a_quarter_of_its_pixel(monkeypatch):
    value = torch.ones(1, 4, 1, 1)
    locations = torch.zeros(1, 1, 1, 1, 1, 2)
    found = attend(monkeypatch, torch.tensor([[2, 2]]), torch.tensor([0]))(value, locations, torch.ones(1, 1, 1, 1, 1))
    assert found.item() == 0.25


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype, monkeypatch):
    inputs = case(dtype)
    found = with_gradients(attend(monkeypatch), *inputs)
    expected = with_gradients(attend(monkeypatch), *(tensor.float() for tensor in inputs))
    assert all(tensor.dtype == dtype for tensor in found)
    torch.testing.assert_close(found[0], expected[0].to(dtype), rtol=0, atol=0)
