"""Norms and sums before norms in the form for CUDA, which the operators' references run on a CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.layers import LayerNorm
from mm_vitbackbones.ops import context, norm


@pytest.fixture(autouse=True)
def on_cuda() -> Iterator[None]:
    with context.pretend_device("cuda"):
        yield


@pytest.fixture
def layer() -> LayerNorm:
    layer = LayerNorm(24, eps=1e-6)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


def plain(x: Tensor, layer: LayerNorm) -> Tensor:
    return F.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)


def gradients(loss: Tensor, *tensors: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, tensors))


@pytest.mark.parametrize("scaled", [False, True], ids=["no scale", "scale"])
@pytest.mark.parametrize("factor", [None, torch.tensor([0.0, 2.0])], ids=["no factor", "factor"])
def test_sum_and_norm_have_the_values_and_gradients_of_separate_operators(
    layer: LayerNorm, factor: Tensor | None, scaled: bool
) -> None:
    x, branch = (torch.randn(2, 3, 5, 24, requires_grad=True) for _ in range(2))
    scale = torch.randn(24, requires_grad=True) if scaled else None
    of_total, of_norm = torch.randn(2, 3, 5, 24), torch.randn(2, 3, 5, 24)
    parameters = x, branch, layer.weight, layer.bias, *([] if scale is None else [scale])
    total, normed = norm.add(x, branch, factor, scale, layer)
    expected = x + branch * (1 if factor is None else factor.view(2, 1, 1, 1)) * (1 if scale is None else scale)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(normed, plain(expected, layer))
    ours = gradients((total * of_total + normed * of_norm).sum(), *parameters)
    theirs = gradients((expected * of_total + plain(expected, layer) * of_norm).sum(), *parameters)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("used", ["both", "norm", "x"])
def test_fork_adds_up_the_gradients_of_what_is_used(layer: LayerNorm, used: str) -> None:
    x = torch.randn(2, 7, 24, requires_grad=True)
    same, normed = norm.fork(x, layer)
    of_x, of_norm = torch.randn_like(x) * (used != "norm"), torch.randn_like(x) * (used != "x")
    parts = ([same * of_x] if used != "norm" else []) + ([normed * of_norm] if used != "x" else [])
    loss = torch.stack(parts).sum()
    expected = (x * of_x + plain(x, layer) * of_norm).sum()
    torch.testing.assert_close(gradients(loss, x), gradients(expected, x), rtol=1e-4, atol=1e-5)


def test_a_norm_for_a_linear_map_is_narrow_and_one_for_others_is_in_fp32_under_autocast(layer: LayerNorm) -> None:
    x = torch.randn(2, 7, 24)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm.for_linear(x, layer).dtype == torch.bfloat16
        assert layer(x.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(norm.for_linear(x, layer), plain(x, layer))


def test_gradients_of_parameters_are_in_fp32_under_autocast(layer: LayerNorm) -> None:
    x, branch = torch.randn(2, 7, 24, requires_grad=True), torch.randn(2, 7, 24).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        total, normed = norm.add(x, branch, None, None, layer)
    assert (total.dtype, normed.dtype) == (torch.float32, torch.bfloat16)
    found = gradients(total.sum() + normed.float().square().sum(), x, branch, layer.weight, layer.bias)
    assert [g.dtype for g in found] == [torch.float32, torch.bfloat16, torch.float32, torch.float32]


def test_a_norm_with_a_hook_is_called(layer: LayerNorm) -> None:
    seen = []
    layer.register_forward_hook(lambda _, __, out: seen.append(out))
    x = torch.randn(2, 7, 24)
    assert not norm.is_fast(x, layer)
    torch.testing.assert_close(norm.for_linear(x, layer), plain(x, layer))
    assert len(seen) == 1


def test_a_grid_that_is_not_contiguous_is_normalised_over_its_channels(layer: LayerNorm) -> None:
    x = torch.randn(2, 24, 3, 5).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x), plain(x, layer))
