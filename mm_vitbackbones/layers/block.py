from __future__ import annotations

from torch import Tensor, nn

from mm_vitbackbones.layers.feed_forward import FeedForward, MixFeedForward
from mm_vitbackbones.layers.norm import LayerNorm
from mm_vitbackbones.layers.recompute import recompute
from mm_vitbackbones.layers.residual import DropPath, add_residual


class Block(nn.Module):
    """The pre-norm transformer block over grids (B, H, W, C), or tokens (B, N, C) where ``attn`` takes
    these: x + attn(norm1(x)), then x + ffn(norm2(x)).

    ``attn`` and ``ffn`` are called with the grid and with its norm, so that they decide what training keeps of it.

    ``recomputed`` trades time for memory in training: ``"ffn"`` computes the feed-forward network, whose hidden map
    is the largest tensor of all, again in the backward pass; ``"block"`` the whole block; ``None`` nothing but what
    is nearly free.
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        ffn: FeedForward | MixFeedForward,
        norm_eps: float,
        drop_path: float,
        recomputed: str | None,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=norm_eps)
        self.attn = attn
        self.norm2 = LayerNorm(dim, eps=norm_eps)
        self.ffn = ffn
        self.drop_path = DropPath(drop_path)
        self.recomputed = recomputed

    def forward(self, grid: Tensor) -> Tensor:
        if self.recomputed == "block" and self.training:
            return recompute(self._residuals, grid, random=self.drop_path.rate > 0)
        return self._residuals(grid)

    def _residuals(self, grid: Tensor) -> Tensor:
        grid = add_residual(grid, self.drop_path(self.attn(grid, self.norm1)))
        return add_residual(grid, self.drop_path(self._feed_forward(grid)))

    def _feed_forward(self, grid: Tensor) -> Tensor:
        if self.recomputed == "ffn" and self.training:
            return recompute(lambda x: self.ffn.plain(x, self.norm2), grid)
        return self.ffn(grid, self.norm2)
