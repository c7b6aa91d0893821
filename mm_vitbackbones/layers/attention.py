"""Spatial-reduction attention (PVT, PVTv2, MiT).

B batch, N = H*W query tokens, M key tokens, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.layers.conv import ChannelsLastConv2d
from mm_vitbackbones.layers.norm import LayerNorm
from mm_vitbackbones.ops import onednn as fused
from mm_vitbackbones.ops.memory import recompute_between


def attend(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """Multi-head attention of tokens (B, N, C) over tokens (B, M, C) -> (B, N, C). No N x M matrix is stored."""
    q, k, v = (tokens.unflatten(-1, (num_heads, -1)).transpose(1, 2) for tokens in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class ConvReduction(nn.Module):
    """Keys and values on a coarser grid: (B, H, W, C) -> (B, H//r, W//r, C). A remainder of rows or columns is
    left out, as in the official code."""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.conv = ChannelsLastConv2d(dim, dim, kernel_size=ratio, stride=ratio)
        self.norm = LayerNorm(dim, eps=1e-5)  # PyTorch's default epsilon, as official

    def forward(self, grid: Tensor) -> Tensor:
        return self.norm(self.conv(grid))


class SpatialReductionAttention(nn.Module):
    """Attention of every token of norm(x) over a reduced grid of keys and values (PVT, equations 1 to 4).

    ``reduction`` maps a grid to the grid of the keys; None leaves it as it is.
    """

    def __init__(self, dim: int, num_heads: int, reduction: nn.Module | None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.reduction = nn.Identity() if reduction is None else reduction

    def forward(self, grid: Tensor, norm: nn.Module) -> Tensor:
        if torch.is_grad_enabled():
            return self.lean(grid, norm)
        return self.fast(grid, norm) if fused.usable(grid) else self.plain(grid, norm)

    def plain(self, grid: Tensor, norm: nn.Module) -> Tensor:
        return self._attend(*self._project(norm(grid)))

    def lean(self, grid: Tensor, norm: nn.Module) -> Tensor:
        """Equal to ``plain``; the norm's result is computed again in the backward pass instead of kept."""
        return self._attend(*recompute_between(grid, norm, self._project))

    def fast(self, grid: Tensor, norm: nn.Module) -> Tensor:
        """Equal to ``plain``, for inference on CPU: fewer passes over memory."""
        normed = norm(grid)
        key, value = self.kv(self.reduction(normed)).flatten(1, 2).chunk(2, dim=-1)
        if self.num_heads == 1:
            return self._attend_one_head(normed.flatten(1, 2), key, value).view_as(grid)
        query = fused.linear(normed, self.q).flatten(1, 2)
        return fused.linear(attend(query, key, value, self.num_heads), self.proj).view_as(grid)

    def _attend_one_head(self, tokens: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``proj(attend(q(tokens), key, value))`` of one head, with both linear maps done on the few keys instead.

        The rows of the softmax P sum to one, so proj(P V) = P proj(V). And q(x) . k = x . (Wq' k) + bq . k, whose
        last term is one number per key, which the mask adds.
        """
        scale = tokens.shape[-1] ** -0.5
        mask = (key @ self.q.bias * scale)[:, None, None, :]
        query, key, value = (t.unsqueeze(1) for t in (tokens, key @ self.q.weight, self.proj(value)))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale).squeeze(1)

    def _project(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        # The queries come last: `lean` computes again what stands before them, and the keys and values are few.
        key_value = self.kv(self.reduction(normed))
        return self.q(normed), key_value

    def _attend(self, query: Tensor, key_value: Tensor) -> Tensor:
        key, value = key_value.flatten(1, 2).chunk(2, dim=-1)
        return self.proj(attend(query.flatten(1, 2), key, value, self.num_heads)).view_as(query)
