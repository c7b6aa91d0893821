"""The feed-forward networks. r is the ratio of their hidden width to C."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.layers.conv import ChannelsLastConv2d

BAND_BYTES = 2 * 2**20
"""Size that a band's hidden map should have: about one core's second-level cache."""


class FeedForward(nn.Module):
    """fc1, GELU, fc2 over grids (B, H, W, C)."""

    halo = 0

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, grid: Tensor) -> Tensor:
        return in_row_bands(self, grid) if bands_pay(self, grid) else self.plain(grid)

    def plain(self, grid: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(grid)))

    def band(self, rows: Tensor, inner: slice) -> Tensor:
        return self.plain(rows)


class MixFeedForward(nn.Module):
    """fc1, depthwise 3x3 convolution, GELU, fc2 over grids (B, H, W, C) (PVTv2, section 3.3; SegFormer, equation 3).

    The zero padding of the convolution tells the network where it is: no position embedding is needed.
    ``relu`` adds a ReLU after fc1 (PVTv2-b2-li).
    """

    halo = 1

    def __init__(self, dim: int, hidden_dim: int, relu: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.relu = relu
        self.dwconv = ChannelsLastConv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, grid: Tensor) -> Tensor:
        return in_row_bands(self, grid) if bands_pay(self, grid) else self.plain(grid)

    def plain(self, grid: Tensor) -> Tensor:
        return self.band(grid, slice(None))

    def band(self, rows: Tensor, inner: slice) -> Tensor:
        hidden = self.fc1(rows)
        if self.relu:
            hidden = F.relu(hidden)
        return self.fc2(F.gelu(self.dwconv(hidden)[:, inner]))


def bands_pay(ffn: FeedForward | MixFeedForward, grid: Tensor) -> bool:
    """Whether the hidden map outgrows the caches, in eager inference on CPU: the case for which the bands are."""
    if torch.is_grad_enabled() or grid.is_cuda or torch.compiler.is_compiling():
        return False
    return grid.shape[1:3].numel() * ffn.fc1.out_features * grid.element_size() > 4 * BAND_BYTES


def in_row_bands(ffn: FeedForward | MixFeedForward, grid: Tensor) -> Tensor:
    """Equal to ``ffn.plain(grid)``, a few rows at a time, so that the hidden map never leaves the cache.

    A band carries ``ffn.halo`` further rows on each side for the convolution and drops them after it. At the
    border of the grid there is no halo: there the convolution pads with zeros, as it does in the plain form.
    """
    _, height, width, _ = grid.shape
    rows = max(1, BAND_BYTES // (width * ffn.fc1.out_features * grid.element_size()))
    out = torch.empty_like(grid)
    for image, result in zip(grid.split(1), out.split(1), strict=True):
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            first, last = max(top - ffn.halo, 0), min(bottom + ffn.halo, height)
            result[:, top:bottom] = ffn.band(image[:, first:last], slice(top - first, bottom - first))
    return out
