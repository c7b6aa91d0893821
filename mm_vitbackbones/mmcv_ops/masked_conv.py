"""The two steps of a convolution that is computed at some positions alone (Wang et al., Guided Anchoring, 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Collects what the kernel covers at each of N positions of the output.

    Args:
        im: (1, C, H, W), with zeros around it.
        mask_h_idx, mask_w_idx: (N,), row and column of each position; the stride is 1.
        col: (C * kernel_h * kernel_w, N), receives the values.
    """
    padded = F.pad(im[0], (pad_w, pad_w, pad_h, pad_h))
    row = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None, None]
    column = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(padded[:, row, column].flatten(0, 2))


def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """Writes ``col`` (C, N) to N positions of ``im`` (1, C, H, W); the others stay as they are."""
    im[0, :, mask_h_idx, mask_w_idx] = col.to(im.dtype)
