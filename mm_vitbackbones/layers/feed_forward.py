"""The feed-forward networks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mm_vitbackbones.layers.conv import ChannelsLastConv2d
from mm_vitbackbones.ops import context, feed_forward
from mm_vitbackbones.ops.residual import Reach


@context.plain
class FeedForward(nn.Module):
    """fc2(GELU(fc1(x))) over grids (B, H, W, C) or tokens (B, N, C)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.reach = Reach(rows=0, width=hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        return feed_forward.feed_forward(x, self.fc1, self.fc2)

    @property
    def parts(self) -> feed_forward.Parts:
        """What it consists of."""
        inner: dict[str, Any] = self._modules  # `self.fc1` takes PyTorch as long as a launch
        return feed_forward.Parts(inner["fc1"], inner["fc2"])


@context.plain
class GatedFeedForward(nn.Module):
    """w3(SiLU(w1(x)) * w2(x)) over grids (B, H, W, C) or tokens (B, N, C) (Shazeer 2020, SwiGLU)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden_dim)
        self.w2 = nn.Linear(dim, hidden_dim)
        self.w3 = nn.Linear(hidden_dim, dim)
        self.reach = Reach(rows=0, width=2 * hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        return feed_forward.gated_feed_forward(x, self.w1, self.w2, self.w3)


@context.plain
class MixFeedForward(nn.Module):
    """fc2(GELU(dwconv3x3(fc1(x)))) over grids (B, H, W, C) (PVTv2, section 3.3; SegFormer, equation 3).

    The zero padding of the convolution encodes the position: no position embedding is needed.
    ``relu`` adds a ReLU after fc1 (PVTv2-b2-li).
    """

    def __init__(self, dim: int, hidden_dim: int, relu: bool = False) -> None:
        super().__init__()
        self.relu = relu
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.dwconv = ChannelsLastConv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.reach = Reach(rows=1, width=hidden_dim)

    def forward(self, grid: Tensor) -> Tensor:
        return feed_forward.mix_feed_forward(grid, self.fc1, self.dwconv, self.fc2, self.relu)

    @property
    def parts(self) -> feed_forward.Parts | None:
        """What it consists of; None with a ReLU."""
        inner: dict[str, Any] = self._modules
        return None if self.relu else feed_forward.Parts(inner["fc1"], inner["fc2"], inner["dwconv"])
