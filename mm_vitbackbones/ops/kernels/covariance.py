"""The shares of channels, from their products over all tokens (``ops.covariance``), and their gradients.

The matrices of an image and a head are small. PyTorch's operators for them, a dozen forward and two dozen backward,
take longer to start than to compute.

M matrices, of all heads of all images in turn; h heads, d channels of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mm_vitbackbones.ops.kernels.registration import kernel, operator

SHORTEST = 1e-12
"""The least length that is divided by."""


def _cosines(products: Tensor, lengths: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The cosines, what the products were divided by, and the factor of each matrix."""
    of_query, of_key = lengths.clamp_min(SHORTEST).chunk(2, -1)
    over = of_query.unsqueeze(-1) * of_key.unsqueeze(-2)
    factor = temperature.to(lengths.dtype).view(-1, 1, 1).repeat(len(products) // len(temperature), 1, 1)
    return products.to(lengths.dtype) / over, over, factor


def _reference(products: Tensor, lengths: Tensor, temperature: Tensor) -> Tensor:
    cosines, _, factor = _cosines(products, lengths, temperature)
    return (cosines * factor).softmax(-1).to(products.dtype)


def _reference_backward(
    grad: Tensor, products: Tensor, lengths: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    cosines, over, factor = _cosines(products, lengths, temperature)
    shares = (cosines * factor).softmax(-1)
    of_logits = torch._softmax_backward_data(grad.to(shares.dtype), shares, -1, shares.dtype)
    of_temperature = (of_logits * cosines).sum((1, 2)).view(-1, len(temperature)).sum(0)
    of_cosines = of_logits * factor
    pulled = of_cosines * cosines
    pulls = torch.cat((pulled.sum(-1), pulled.sum(-2)), -1) / lengths.clamp_min(SHORTEST).square()
    return (of_cosines / over).to(products.dtype), pulls, of_temperature.view_as(temperature)


shares = operator(
    "covariance_shares(Tensor products, Tensor lengths, Tensor temperature) -> Tensor",
    _reference,
    kernel("covariance", "shares"),
)
"""softmax(t P / (|q| |k|)), (M, d, d) in the type of the products P, (M, d, d), with the lengths of queries, then keys,
(M, 2d), and one factor t for each head, (h, 1, 1)."""

shares_backward = operator(
    "covariance_shares_backward(Tensor grad, Tensor products, Tensor lengths, Tensor temperature)"
    " -> (Tensor, Tensor, Tensor)",
    _reference_backward,
    kernel("covariance", "shares_backward"),
)
"""``(of_products, pulls, of_temperature)``: what queries and keys, multiplied by it, lose, as their lengths divide, are
the ``pulls``, (M, 2d). The gradient of |x| is x / |x|. The last two are in the type of the lengths."""
