"""Bilinear sampling at any positions of a map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bilinear(map: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The values of a map between its pixels, with gradients of the map and the positions.

    The value at a position is the sum of the four pixels around it, each weighed by its nearness: ``(1 - |dy|) *
    (1 - |dx|)``. Pixels outside the map are zero. A position on a pixel has the derivative towards the next one.

    Args:
        map: (H, W, G, C): the positions of each of G groups of channels are its own.
        y, x: (..., G), in pixels: (0, 0) is the centre of the first one. Values of -1 or less, or of H (or W) and
            more, are outside, with a gradient of zero.

    Returns:
        (..., G, C).
    """
    height, width, groups, channels = map.shape
    top, left = y.detach().floor(), x.detach().floor()
    inside = (y > -1) & (y < height) & (x > -1) & (x < width)
    down, right = y - top, x - left
    group = torch.arange(groups, device=map.device)
    indices, weights = [], []
    for row, nearness_y in ((top, 1 - down), (top + 1, down)):
        for column, nearness_x in ((left, 1 - right), (left + 1, right)):
            exists = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            pixel = torch.where(exists, row * width + column, 0).long()
            indices.append(pixel * groups + group)
            weights.append(torch.where(exists, nearness_y * nearness_x, 0))
    # A sum of four weighed rows of a table: nothing of four times the result's size is held.
    index, weight = torch.stack(indices, -1).view(-1, 4), torch.stack(weights, -1).view(-1, 4)
    found = F.embedding_bag(index, map.reshape(-1, channels), mode="sum", per_sample_weights=weight)
    return found.view(*y.shape, channels)
