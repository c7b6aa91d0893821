"""Upsampling with a kernel per pixel (Wang et al., CARAFE: Content-Aware ReAssembly of FEatures, 2019)."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from mm_vitbackbones.mmcv_ops.precision import widened


def carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    """A pixel of the output is a weighed sum of the K x K pixels around the one that it comes from.

    Args:
        features: (B, C, H, W), with zeros around it.
        masks: (B, groups * K * K, s * H, s * W), the weights of each pixel of the output for each group of channels.
        output: (B, C, s * H, s * W), receives the sums.
        kernel_size: K, an odd number.
        group_size: the number of groups.
        scale_factor: s.
    """
    sums = widened(output.new_zeros(output.shape))
    spread = sums.view(len(features), group_size, -1, features.shape[2], scale_factor, features.shape[3], scale_factor)
    for pixels, weights in _taps(features, masks, kernel_size, group_size, scale_factor):
        spread.addcmul_(pixels, weights)
    output.copy_(sums)


def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Writes the gradients of the features and the masks."""
    batch, channels, height, width = features.shape
    grad = widened(top_grad).reshape(batch, group_size, -1, height, scale_factor, width, scale_factor)
    border = kernel_size // 2
    of_features = grad.new_zeros(batch, group_size, grad.shape[2], height + 2 * border, width + 2 * border)
    of_masks = grad.new_empty(batch, group_size, kernel_size**2, height, scale_factor, width, scale_factor)
    for tap, (pixels, weights) in enumerate(_taps(features, masks, kernel_size, group_size, scale_factor)):
        row, column = divmod(tap, kernel_size)
        of_features[..., row : row + height, column : column + width] += (grad * weights).sum((4, 6))
        of_masks[:, :, tap] = (grad * pixels).sum(2)
    mask_grad.copy_(of_masks.reshape(mask_grad.shape))
    inner = of_features[..., border : border + height, border : border + width]
    bottom_grad.copy_(inner.reshape(batch, channels, height, width))


def _taps(
    features: Tensor, masks: Tensor, kernel_size: int, groups: int, scale: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each tap of the kernel, its pixels and weights, to be multiplied: (B, groups, C / groups, H, s, W, s)."""
    batch, _, height, width = features.shape
    padded = F.pad(widened(features), (kernel_size // 2,) * 4).unflatten(1, (groups, -1))
    weights = widened(masks).reshape(batch, groups, kernel_size**2, 1, height, scale, width, scale)
    for tap in range(kernel_size**2):
        row, column = divmod(tap, kernel_size)
        pixels = padded[..., row : row + height, column : column + width]
        yield pixels[:, :, :, :, None, :, None], weights[:, :, tap]


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """``carafe_naive_forward``; ``rfeatures`` receives the features for the backward pass, the rest is not used."""
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """``carafe_naive_backward``; the other buffers are not used."""
    carafe_naive_backward(top_grad, rfeatures, masks, bottom_grad, mask_grad, kernel_size, group_size, scale_factor)
