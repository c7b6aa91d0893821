"""The kernels of norms, and of the gradients of GELU and of scaled branches, equal their references; without a card, in
Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mm_vitbackbones.ops.kernels import gelu, norm, scale

pytest.importorskip("triton", reason="the kernels are written in Triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FP32, BF16 = torch.float32, torch.bfloat16


def close(actual: Tensor, expected: Tensor, computed_in: torch.dtype = FP32) -> None:
    # The interpreter cuts bf16 off where a card rounds: one unit in the last of 8 bits.
    tolerance = 8e-3 if BF16 in (actual.dtype, computed_in) else 1e-5
    assert (actual.double() - expected.double()).norm() <= tolerance * expected.double().norm()


@pytest.mark.parametrize(
    ("shape", "of_x", "of_branch", "factor"),
    [
        ((2, 3, 5, 24), FP32, BF16, True),
        ((3, 7, 64), FP32, FP32, True),
        ((1, 70, 40), BF16, BF16, False),
        ((2, 3, 320), FP32, BF16, False),
        ((1, 3, 1536), FP32, BF16, True),
    ],
    ids=str,
)
def test_sum_and_norm_equal_their_reference(shape, of_x, of_branch, factor):
    from mm_vitbackbones.ops.kernels.triton import norm as kernels

    torch.manual_seed(0)
    x, branch = torch.randn(shape, device=DEVICE).to(of_x), torch.randn(shape, device=DEVICE).to(of_branch)
    weight, bias = torch.randn(2, shape[-1], device=DEVICE)
    factors = torch.rand(shape[0], device=DEVICE) if factor else None
    for scales in (torch.randn(shape[-1], device=DEVICE), None):
        arguments = x, branch, factors, scales, weight, bias, 1e-6, of_branch
        expected = norm._reference_of_sum(*arguments)
        for actual, wanted in zip(kernels.add_layer_norm(*arguments), expected, strict=True):
            close(actual, wanted, of_x)
    total, _, statistics = expected
    grad, grad_total = torch.randn(shape, device=DEVICE).to(of_branch), torch.randn_like(total)
    for more in (grad_total, None):
        gradients = grad, more, total, statistics, weight, factors, of_branch
        wanted = norm._reference_backward_of_sum(*gradients)
        for actual, one in zip(kernels.add_layer_norm_backward(*gradients), wanted, strict=True):
            close(actual, one)


def test_a_norm_alone_equals_its_reference():
    from mm_vitbackbones.ops.kernels.triton import norm as kernels

    torch.manual_seed(0)
    x, (weight, bias) = torch.randn(2, 9, 40, device=DEVICE), torch.randn(2, 40, device=DEVICE)
    expected = norm._reference(x, weight, bias, 1e-5, FP32)
    for actual, wanted in zip(kernels.layer_norm(x, weight, bias, 1e-5, FP32), expected, strict=True):
        close(actual, wanted)
    gradients = torch.randn_like(x), torch.randn_like(x), x, expected[1], weight
    wanted = norm._reference_backward(*gradients)
    for actual, one in zip(kernels.layer_norm_backward(*gradients), wanted, strict=True):
        close(actual, one)


@pytest.mark.parametrize("shape", [(3, 5), (70, 64), (33, 100)], ids=str)
def test_gelu_and_its_gradient_equal_their_reference(shape):
    from mm_vitbackbones.ops.kernels.triton import gelu as kernels

    torch.manual_seed(0)
    grad, hidden = torch.randn(2, *shape, device=DEVICE)
    ours, theirs = grad.clone(), grad.clone()  # both write into what they are given
    for actual, wanted in zip(kernels.backward_(ours, hidden), gelu._reference(theirs, hidden), strict=True):
        close(actual, wanted)
    close(ours, theirs)
    before = grad.clone()
    for actual, wanted in zip(kernels.backward(grad, hidden), gelu._reference_of_graphs(grad, hidden), strict=True):
        close(actual, wanted)
    assert torch.equal(grad, before)


@pytest.mark.parametrize("factor", [True, False], ids=["factor", "no factor"])
@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 70, 64), (1, 3, 11, 100)], ids=str)
def test_the_gradients_of_a_scaled_branch_equal_their_reference(shape, factor):
    from mm_vitbackbones.ops.kernels.triton import scale as kernels

    torch.manual_seed(0)
    grad, branch = torch.randn(2, *shape, device=DEVICE)
    factors = torch.rand(shape[0], device=DEVICE) if factor else None
    arguments = grad, branch, factors, torch.randn(shape[-1], device=DEVICE)
    for actual, wanted in zip(kernels.backward(*arguments), scale._reference(*arguments), strict=True):
        close(actual, wanted)


@pytest.mark.parametrize("factor", [True, False])
def test_norms_by_level_equal_those_of_the_levels(factor):
    from mm_vitbackbones.ops.kernels.triton import norm as kernels

    torch.manual_seed(0)
    sizes, channels = [9, 5, 2], 24
    x, branch, grad, grad_total = torch.randn(4, sum(sizes), channels, device=DEVICE)
    weights, biases = torch.randn(2, len(sizes), channels, device=DEVICE).unbind()
    weights, biases = [*weights], [*biases]
    factors = torch.rand(sum(sizes), device=DEVICE) if factor else None
    total, y, statistics = kernels.add_layer_norm_by_level(x, branch, factors, sizes, weights, biases, 1e-6, FP32)
    of_x, of_branch, *of_parameters = kernels.add_layer_norm_by_level_backward(
        grad, grad_total, total, statistics, factors, sizes, weights, FP32
    )
    alone, statistics_alone = kernels.layer_norm_by_level(total, sizes, weights, biases, 1e-6, FP32)
    of_alone, *_ = kernels.layer_norm_by_level_backward(grad, None, total, statistics_alone, sizes, weights)
    last = 0
    for i, size in enumerate(sizes):
        first, last = last, last + size
        part = slice(first, last)
        of_level = None if factors is None else factors[part]
        wanted = kernels.add_layer_norm(x[part], branch[part], of_level, None, weights[i], biases[i], 1e-6, FP32)
        for actual, one in zip(
            (total[part], y[part], statistics[2 * first : 2 * last].view(2, -1)), wanted, strict=True
        ):
            assert torch.equal(actual, one)
        gradients = grad[part], grad_total[part], total[part], wanted[2], weights[i], of_level, FP32
        found = of_x[part], of_branch[part], *(of_parameter[i] for of_parameter in of_parameters)
        for actual, one in zip(found, kernels.add_layer_norm_backward(*gradients), strict=True):
            assert torch.equal(actual, one)
        close(alone[part], y[part])
        close(of_alone[part], kernels.layer_norm_backward(grad[part], None, total[part], wanted[2], weights[i])[0])
    references = norm._reference_of_sum_by_level(x, branch, factors, sizes, weights, biases, 1e-6, FP32)
    for actual, one in zip((total, y, statistics), references, strict=True):
        close(actual, one)
    references = norm._reference_backward_of_sum_by_level(
        grad, grad_total, total, statistics, factors, sizes, weights, FP32
    )
    for actual, one in zip((of_x, of_branch), references[:2], strict=True):
        close(actual, one)
    for actual, ones in zip(of_parameters, references[2:], strict=True):
        for mine, theirs in zip(actual, ones, strict=True):
            close(mine, theirs)
