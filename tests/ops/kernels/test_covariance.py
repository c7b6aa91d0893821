"""The kernels of the shares of channels equal their references; without a card, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from mm_vitbackbones.ops.kernels import covariance

pytest.importorskip("triton", reason="the kernels are written in Triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dim", [3, 48, 96])  # one row, one tile, several tiles
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_shares_and_their_gradients_equal_their_reference(dim, dtype):
    from mm_vitbackbones.ops.kernels.triton import covariance as kernels

    torch.manual_seed(0)
    heads, matrices = 2, 6
    products, grad = (4 * torch.randn(2, matrices, dim, dim, device=DEVICE)).to(dtype)
    lengths = torch.rand(matrices, 2 * dim, device=DEVICE) + 0.5
    lengths[1, 2] = lengths[2, dim + 1] = 0
    products[1, 2] = products[2, :, 1] = 0  # of channels of zeros
    temperature = torch.rand(heads, 1, 1, device=DEVICE) + 1
    arguments = products, lengths, temperature
    actual, expected = kernels.shares(*arguments), covariance._reference(*arguments)
    # The interpreter cuts bf16 off where a card rounds: one unit in the last of 8 bits.
    tolerance = 8e-3 if dtype == torch.bfloat16 else 1e-5
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=1e-7)
    found, wanted = kernels.shares_backward(grad, *arguments), covariance._reference_backward(grad, *arguments)
    for a, b in zip(found, wanted, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        keep = torch.isfinite(b) & (b.abs() < 1e6)  # the products of zeros have gradients, which zeros then multiply
        assert (a[keep].double() - b[keep].double()).norm() <= tolerance * b[keep].double().norm()
        torch.testing.assert_close(a, b, rtol=2e-2, atol=1e-3)
