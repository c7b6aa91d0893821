"""Attention of channels against the products that the paper writes, and what it keeps and copies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers.official import relative_error
from mm_vitbackbones.measuring import OperatorCount, copies, held_bytes, peak_bytes
from mm_vitbackbones.ops import context, covariance


def inputs(dtype: torch.dtype, tokens: int = 50, dim: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    qkv = torch.randn(3, tokens, 3 * dim, dtype=dtype)
    temperature = torch.rand(4, 1, 1, dtype=dtype) + 3
    return qkv.requires_grad_(), temperature.requires_grad_(), torch.randn(3, tokens, dim, dtype=dtype)


def with_gradients(attend, qkv, temperature, of_out, autocast=False):
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out = attend(qkv.bfloat16() if autocast else qkv, temperature, 4)
    return [out.detach(), *torch.autograd.grad((out * of_out).sum(), (qkv, temperature))]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_lengths_that_divide_products_are_normalised_maps_with_their_gradients(device):
    arguments = inputs(torch.float64)
    with context.pretend_device(device):
        found = with_gradients(covariance.attend, *arguments)
    for a, b in zip(found, with_gradients(covariance.reference, *arguments), strict=True):
        assert relative_error(a, b) <= 1e-12
    with torch.no_grad(), context.pretend_device(device):
        assert torch.equal(covariance.attend(*arguments[:2], 4), found[0])


def test_on_cuda_the_number_of_operators_is_that_of_one_image():
    counts = []
    for images in (1, 3):
        qkv, temperature, of_out = inputs(torch.float32)
        qkv, of_out = qkv.detach()[:images].requires_grad_(), of_out[:images]
        with context.pretend_device("cuda"), OperatorCount() as count:
            with_gradients(covariance.attend, qkv, temperature, of_out)
        counts.append(sum(number for name, number in count.by_name.items() if "bmm" in name or "copy_" in name))
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_grid_has_the_result_and_gradients_of_its_tokens(device):
    qkv, temperature, of_out = inputs(torch.float32)
    grid = qkv.detach().unflatten(1, (5, 10)).requires_grad_()
    with context.pretend_device(device):
        expected = with_gradients(covariance.attend, qkv, temperature, of_out)
        found = with_gradients(covariance.attend, grid, temperature, of_out.unflatten(1, (5, 10)))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.flatten(), b.flatten())


def test_on_cuda_maps_are_copied_once_each_and_kept_once():
    """Queries, keys and values, then the gradient; products and their sums write where the results are wanted."""
    qkv, temperature, of_out = inputs(torch.float32, tokens=400)
    with context.pretend_device("cuda"):
        run = lambda: covariance.attend(qkv, temperature, 4)  # noqa: E731
        assert held_bytes(run) < 1.2 * (qkv.nbytes + of_out.nbytes)
        with OperatorCount() as count:
            result = run()
        assert count.by_name["aten.bmm"] == 2 == count.by_name["aten.clone"]  # heads in order and back
        with OperatorCount() as count:
            torch.autograd.grad(result, qkv, of_out)
        assert [count.by_name[f"aten.{name}"] for name in ("bmm", "clone", "copy_", "addcmul")] == [4, 1, 1, 2]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_under_autocast_it_is_as_near_as_the_reference(device):
    arguments = inputs(torch.float32)
    exact = with_gradients(covariance.reference, *arguments)
    with context.pretend_device(device):
        ours, theirs = (with_gradients(f, *arguments, autocast=True) for f in (covariance.attend, covariance.reference))
    assert ours[0].dtype == torch.bfloat16
    for a, b, c in zip(ours, theirs, exact, strict=True):
        assert (a - c).norm() < max(2 * (b - c).norm(), 0.005 * c.norm())


def test_a_channel_of_zeros_is_no_division_by_zero():
    qkv, temperature, of_out = inputs(torch.float32)
    with torch.no_grad():
        qkv[:, :, 5] = 0
    found, expected = (with_gradients(f, qkv, temperature, of_out) for f in (covariance.attend, covariance.reference))
    assert all(torch.isfinite(x).all() for x in found)
    assert relative_error(found[0], expected[0]) <= 1e-5


def test_products_of_half_precision_do_not_overflow():
    qkv, temperature, _ = inputs(torch.float32, tokens=9000)
    with torch.no_grad():
        qkv[..., :32] = qkv[..., 32:64]  # the product of a channel with itself is 81000
        expected = covariance.reference(qkv * 3, temperature, 4)
        found = covariance.attend((qkv * 3).half(), temperature.half(), 4)
    assert relative_error(found.float(), expected) <= 0.02


def test_training_keeps_queries_keys_and_values_alone_and_copies_no_map():
    qkv, temperature, _ = inputs(torch.float32, tokens=4000)
    out = qkv.nbytes // 3
    assert held_bytes(lambda: covariance.attend(qkv, temperature, 4)) < 1.05 * out
    assert held_bytes(lambda: covariance.reference(qkv, temperature, 4)) > 2 * out
    assert not copies(lambda: covariance.attend(qkv, temperature, 4), qkv.numel() // 9)
    of_out = torch.randn(3, 4000, 32)
    result = covariance.attend(qkv, temperature, 4)
    assert not copies(lambda: torch.autograd.grad(result, qkv, of_out, retain_graph=True), qkv.numel() // 9)
    # The gradient, of three maps, and one product of a map on the way.
    assert peak_bytes(lambda: torch.autograd.grad(result, qkv, of_out)) < 4.2 * out


@pytest.mark.parametrize("which", ["qkv", "temperature"])
def test_a_frozen_argument_gets_no_gradient(which):
    qkv, temperature, _ = inputs(torch.float32)
    (qkv if which == "qkv" else temperature).requires_grad_(False)
    covariance.attend(qkv, temperature, 4).sum().backward()
    assert (qkv.grad is None) == (which == "qkv")
    assert (temperature.grad is None) == (which == "temperature")
