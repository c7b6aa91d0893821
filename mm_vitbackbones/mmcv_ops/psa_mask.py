"""Attention over a map from attention over a neighbourhood (Zhao et al., PSANet, 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

COLLECT = 0
"""The value of ``psa_type`` for "collect"; 1 is "distribute"."""


def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Spreads, for each pixel, a mask around it over the map.

    Args:
        input: (B, h_mask * w_mask, H, W), the mask of each pixel, which is at its row half_h_mask, column half_w_mask.
        output: (B, H * W, H, W), receives, for "collect", at (other pixel, pixel) the pixel's mask at the other pixel,
            for "distribute" the same at (pixel, other pixel). Where the mask does not reach is zero.
    """
    entry, reached = _entries(input.device, h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask)
    spread = input.flatten(2).gather(1, entry.expand(num_, -1, -1)) * reached
    output.copy_((spread if psa_type == COLLECT else spread.transpose(1, 2)).reshape(output.shape))


def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Adds to the gradient of the input."""
    entry, reached = _entries(grad_output.device, h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask)
    grad = grad_output.flatten(2)
    grad = (grad if psa_type == COLLECT else grad.transpose(1, 2)) * reached
    grad_input.flatten(2).scatter_add_(1, entry.expand(num_, -1, -1), grad)


def _entries(
    device: torch.device, height: int, width: int, h_mask: int, w_mask: int, half_h: int, half_w: int
) -> tuple[Tensor, Tensor]:
    """For each other pixel and pixel (H * W, H * W), the entry of the pixel's mask, and whether the mask reaches it."""
    pixel = torch.arange(height * width, device=device)
    row = (pixel // width)[:, None] - pixel // width + half_h
    column = (pixel % width)[:, None] - pixel % width + half_w
    reached = (row >= 0) & (row < h_mask) & (column >= 0) & (column < w_mask)
    return torch.where(reached, row * w_mask + column, 0), reached
