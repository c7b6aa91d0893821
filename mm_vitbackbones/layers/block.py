"""The pre-norm transformer block and its parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from mm_vitbackbones.layers.drop_path import DropPath
from mm_vitbackbones.layers.norm import LayerNorm
from mm_vitbackbones.ops import context, memory, norm, residual

T = TypeVar("T")


@context.plain
class LayerScale(nn.Module):
    """A learned factor for each channel of a branch, which begins near zero (Touvron et al. 2021, CaiT, section 2)."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Branch(NamedTuple):
    """What a block adds to its grid: drop_path(layer_scale(function(norm(x))))."""

    norm: nn.Module
    function: nn.Module
    drop_path: Callable[[Tensor], Tensor]
    layer_scale: nn.Module | None = None

    def of(self, x: Tensor) -> Tensor:
        """The branch's own result."""
        x = self.function(norm.for_linear(x, self.norm))
        return self.drop_path(x if self.layer_scale is None else self.layer_scale(x))

    def add_to(self, x: Tensor) -> Tensor:
        """x + branch(x)."""
        return residual.add(x, self.of, self.parts, self.reach)

    @property
    def parts(self) -> list[nn.Module]:
        """The modules that a call of the branch calls."""
        return [part for part in self if isinstance(part, nn.Module)]

    @property
    def reach(self) -> residual.Reach | None:
        """How far the branch looks: the reach of its function."""
        return getattr(self.function, "reach", None)


class Recomputable(nn.Module):
    """A part that can save memory in training, by computing again in the backward pass what ``recompute`` says.

    ``recompute`` is one of the constants of ``ops.memory``; the backbone sets it, by its ``with_cp``.
    """

    recompute: str = memory.NOTHING

    def recomputed(self, function: Callable[..., T], *inputs: Any) -> T:
        """``function(*inputs)``, a method or a part of this module, computed again as ``recompute`` says."""
        return self._recomputed(self.recompute, function, *inputs)

    def wholly(self, function: Callable[..., T], *inputs: Any) -> T:
        """``function(*inputs)``, computed again if ``recompute`` says "all"."""
        return self._recomputed(memory.ALL if self.recompute == memory.ALL else memory.NOTHING, function, *inputs)

    def lightly(self, function: Callable[..., T], *inputs: Any) -> T:
        """``function(*inputs)``, without expensive attention in it, computed again if ``recompute`` says
        "all but attention"."""
        light = self.recompute == memory.ALL_BUT_ATTENTION
        return self._recomputed(memory.ALL if light else memory.NOTHING, function, *inputs)

    def _recomputed(self, what: str, function: Callable[..., T], *inputs: Any) -> T:
        if what == memory.NOTHING or not self.training:
            return function(*inputs)
        # Drop path draws random numbers, and so may a module that a user has put into this part.
        random = not context.is_plain_tree(self) or any(
            isinstance(part, DropPath) and part.rate > 0 for part in self.modules()
        )
        return memory.recomputed(function, *inputs, what=what, random=random)


@context.plain
class Block(Recomputable):
    """The pre-norm transformer block over grids (B, H, W, C), or tokens (B, N, C) where ``attn`` takes these:
    x + attn(norm1(x)), then x + ffn(norm2(x))."""

    def __init__(self, dim: int, attn: nn.Module, ffn: nn.Module, norm_eps: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=norm_eps)
        self.attn = attn
        self.norm2 = LayerNorm(dim, eps=norm_eps)
        self.ffn = ffn
        self.drop_path = DropPath(drop_path)

    def branches(self) -> tuple[Branch, ...]:
        """What the block adds, in this order."""
        return Branch(self.norm1, self.attn, self.drop_path), Branch(self.norm2, self.ffn, self.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return self.recomputed(self.residuals, x)

    def residuals(self, x: Tensor) -> Tensor:
        with memory.saving(x):
            return residual.add_branches(x, self.branches(), self.lightly)  # x + branch(x) of each
