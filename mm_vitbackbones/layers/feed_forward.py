"""The feed-forward networks, each with the norm before it.

Three forms that equal each other: ``plain``; ``lean``, for training, which keeps the hidden map once instead of two or
three times; and ``in_bands``, for inference on CPU, which never holds a whole hidden map.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.layers.conv import ChannelsLastConv2d
from mm_vitbackbones.ops import onednn as fused
from mm_vitbackbones.ops.memory import chain, recompute_between

BAND_BYTES = 8 * 2**20
"""The size of a band's hidden map on CPU: small enough for the caches, large enough for halo rows not to matter."""


class _FeedForward(nn.Module, ABC):
    """What both share: two linears, the norm that they are called with, and the choice of the form."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, grid: Tensor, norm: nn.Module) -> Tensor:
        return self.in_bands(grid, norm) if fused.usable(grid) else self.lean(grid, norm)

    def plain(self, grid: Tensor, norm: nn.Module) -> Tensor:
        return chain(grid, norm, self.expand, *self.activations(), self.fc2)

    def lean(self, grid: Tensor, norm: nn.Module) -> Tensor:
        """Equal to ``plain``; keeps ``grid`` and the expanded map for the backward pass."""
        hidden = recompute_between(grid, norm, self.expand)
        return recompute_between(hidden, *self.activations(), self.fc2)

    def expand(self, normed: Tensor) -> Tensor:
        """(..., C) -> (..., rC)."""
        return self.fc1(normed)

    @abstractmethod
    def activations(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """What is done in turn to the expanded map (B, H, W, rC), before ``fc2``."""

    @abstractmethod
    def in_bands(self, grid: Tensor, norm: nn.Module) -> Tensor:
        """Equal to ``plain``, a band at a time, so that the hidden map never leaves the cache."""


class FeedForward(_FeedForward):
    """fc2(GELU(fc1(norm(x)))) over grids (B, H, W, C) or tokens (B, N, C)."""

    def activations(self) -> Sequence[Callable[[Tensor], Tensor]]:
        return (F.gelu,)

    def in_bands(self, grid: Tensor, norm: nn.Module) -> Tensor:
        size = max(1, BAND_BYTES // (self.fc1.out_features * grid.element_size()))
        if grid.numel() <= size * grid.shape[-1]:
            return self._band(grid, norm)
        out = torch.empty_like(grid)
        for tokens, result in zip(grid.flatten(0, -2).split(size), out.flatten(0, -2).split(size), strict=True):
            result.copy_(self._band(tokens, norm))
        return out

    def _band(self, tokens: Tensor, norm: nn.Module) -> Tensor:
        return fused.linear(fused.linear_gelu(norm(tokens), self.fc1), self.fc2)


class MixFeedForward(_FeedForward):
    """fc2(GELU(dwconv3x3(fc1(norm(x))))) over grids (B, H, W, C) (PVTv2, section 3.3; SegFormer, equation 3).

    The zero padding of the convolution tells the network where it is: no position embedding is needed.
    ``relu`` adds a ReLU after fc1 (PVTv2-b2-li).
    """

    def __init__(self, dim: int, hidden_dim: int, relu: bool = False) -> None:
        super().__init__(dim, hidden_dim)
        self.relu = relu
        self.dwconv = ChannelsLastConv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)

    def expand(self, normed: Tensor) -> Tensor:
        hidden = super().expand(normed)
        return F.relu(hidden) if self.relu else hidden

    def activations(self) -> Sequence[Callable[[Tensor], Tensor]]:
        return self.dwconv, F.gelu

    def in_bands(self, grid: Tensor, norm: nn.Module) -> Tensor:
        # A band carries one more row on each side for the convolution. At the border of the grid there is none: there
        # the convolution pads with zeros, as it does in the plain form.
        _, height, width, _ = grid.shape
        out = torch.empty_like(grid)
        size = max(1, BAND_BYTES // (width * self.fc1.out_features * grid.element_size()))
        for image, result in zip(grid.split(1), out.split(1), strict=True):
            for top in range(0, height, size):
                bottom = min(top + size, height)
                first, last = max(top - 1, 0), min(bottom + 1, height)
                hidden = fused.linear(norm(image[:, first:last]), self.fc1)
                if self.relu:
                    hidden = hidden.relu_()
                hidden = fused.conv_gelu(hidden, self.dwconv)[:, top - first : bottom - first]
                result[:, top:bottom] = fused.linear(hidden, self.fc2)
        return out
