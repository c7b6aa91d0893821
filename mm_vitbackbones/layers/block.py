from __future__ import annotations

from torch import Tensor, nn

from mm_vitbackbones.layers.feed_forward import FeedForward, MixFeedForward
from mm_vitbackbones.layers.norm import LayerNorm
from mm_vitbackbones.layers.residual import DropPath, add_residual
from mm_vitbackbones.ops.memory import recompute, recompute_but_attention


class Block(nn.Module):
    """The pre-norm transformer block over grids (B, H, W, C), or tokens (B, N, C) where ``attn`` takes
    these: x + attn(norm1(x)), then x + ffn(norm2(x)).

    ``attn`` and ``ffn`` are called with the grid and with its norm, so that they decide what training keeps of it.

    ``recomputed`` trades time for memory in training: ``"ffn"`` computes all linear maps, among them the feed-forward
    network with its hidden map, the largest tensor of all, again in the backward pass, and attention where it is no
    dearer; ``"block"`` computes the whole block again; ``None`` nothing but what is nearly free.
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
        random = self.drop_path.rate > 0
        if self.recomputed == "block" and self.training:
            return recompute(self._residuals, grid, random=random)
        if self.recomputed == "ffn" and self.training:
            return recompute_but_attention(self._residuals, grid, random=random)
        return self._residuals(grid)

    def _residuals(self, grid: Tensor) -> Tensor:
        grid = add_residual(grid, self.drop_path(self.attn(grid, self.norm1)))
        return add_residual(grid, self.drop_path(self.ffn(grid, self.norm2)))
