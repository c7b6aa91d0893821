"""Attention between two linear maps as one function equals the three functions, with their gradients."""

from __future__ import annotations

import pytest
import torch

from mm_vitbackbones.backbones.cait import TalkingHeadsAttention
from mm_vitbackbones.backbones.xcit import CrossCovarianceAttention
from mm_vitbackbones.ops import between, context

LAYERS = [CrossCovarianceAttention, TalkingHeadsAttention]


def layer_and_grid(kind):
    torch.manual_seed(0)
    layer = kind(24, 4).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer, torch.randn(2, 3, 5, 24, dtype=torch.float64, requires_grad=True)


def step(layer, grid):
    """The result and all gradients."""
    inputs = [x for x in (grid, *layer.parameters()) if x.requires_grad]
    out = layer(grid)
    return [out.detach(), *torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), inputs)]


def equal(actual, expected):
    assert len(actual) == len(expected)
    pairs = zip(actual, expected, strict=True)
    return all(a.shape == b.shape and (a - b).abs().max() <= 1e-10 * b.abs().max() for a, b in pairs)


@pytest.mark.parametrize("frozen", ["nothing", "qkv", "proj", "the input"])
@pytest.mark.parametrize("kind", LAYERS)
def test_results_and_gradients_are_those_of_the_form_for_a_cpu(kind, frozen, monkeypatch):
    layer, grid = layer_and_grid(kind)
    if frozen == "the input":
        grid.requires_grad_(False)
    elif frozen != "nothing":
        layer.get_submodule(frozen).requires_grad_(False)
    expected = step(layer, grid)
    calls, run = [], between._between
    monkeypatch.setattr(between, "_between", lambda *args: calls.append(args) or run(*args))
    with context.pretend_device("cuda"):
        actual = step(layer, grid)
    assert len(calls) == 1
    assert equal(actual, expected)


@pytest.mark.parametrize("observed", ["qkv", "proj"])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_map_that_somebody_observes_is_called(kind, observed):
    layer, grid = layer_and_grid(kind)
    expected = step(layer, grid)
    seen = []
    layer.get_submodule(observed).register_forward_hook(lambda *_: seen.append(observed))
    with context.pretend_device("cuda"):
        actual = step(layer, grid)
    assert seen == [observed]
    assert equal(actual, expected)


@pytest.mark.parametrize("kind", LAYERS)
def test_under_autocast_parameters_get_gradients_of_their_own_type(kind):
    layer, grid = layer_and_grid(kind)
    layer, grid = layer.float(), grid.detach().float().requires_grad_()
    expected = step(layer, grid)
    with context.pretend_device("cuda"), torch.autocast("cpu", torch.bfloat16):
        actual = step(layer, grid)
    assert actual[0].dtype == torch.bfloat16
    assert all(x.dtype == torch.float32 for x in actual[1:])
    for a, b in zip(actual, expected, strict=True):
        assert (a.float() - b).norm() <= 0.1 * b.norm() + 1e-2
