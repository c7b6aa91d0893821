"""The pre-norm transformer block and its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from mm_vitbackbones.layers.drop_path import Drawn, DropPath
from mm_vitbackbones.layers.feed_forward import FeedForward, MixFeedForward
from mm_vitbackbones.layers.norm import LayerNorm
from mm_vitbackbones.ops import compiling, context, feed_forward, memory, narrow, norm, residual
from mm_vitbackbones.ops.chained import Pending, finished
from mm_vitbackbones.ops.sublayer import Sublayer

T = TypeVar("T")


@context.plain
class LayerScale(nn.Module):
    """A learned factor for each channel of a branch, which begins near zero (Touvron et al. 2021, CaiT, section 2)."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Tensor) -> Tensor:
        if context.may_overwrite(x) and x.dtype == self.gamma.dtype:
            return x.mul_(self.gamma)
        return x * self.gamma


class Branch(NamedTuple):
    """What a block adds to its grid: drop_path(layer_scale(function(norm(x))))."""

    norm: nn.Module
    function: nn.Module
    drop_path: Callable[[Tensor], Tensor]
    layer_scale: LayerScale | None = None
    shared: Any = None
    """The function's second argument, if it takes one: what all blocks share, such as the positions of an image."""

    def of(self, x: Tensor) -> Tensor:
        """The branch's own result."""
        x = self.call(norm.for_linear(x, self.norm))
        return self.drop_path(x if self.layer_scale is None else self.layer_scale(x))

    def call(self, normed: Tensor) -> Tensor:
        """The function of a norm's result."""
        return self.function(normed) if self.shared is None else self.function(normed, self.shared)

    def begun(self, x: Tensor) -> tuple[Tensor, Tensor | Pending]:
        """x, and the function of its norm, whose last map may be left to the caller; see ``ops.norm.fork``."""
        begin = getattr(type(self.function), "begun", None) if context.is_plain(self.function) else None
        shared = () if self.shared is None else (self.shared,)
        if begin is not None and torch.is_grad_enabled() and (forked := norm.forked(x, self.norm)) is not None:
            result = begin(self.function, forked, *shared)
            return forked.x, result
        x, normed = norm.fork(x, self.norm)
        return x, self.call(normed) if begin is None else begin(self.function, normed, *shared)

    def begun_after(
        self, x: Tensor, result: Tensor, factor: Tensor | None, scale: Tensor | None
    ) -> tuple[Tensor, Tensor | Pending]:
        """``begun`` of the sum x + factor * scale * result; see ``ops.norm.add``. The function has one argument."""
        begin = getattr(type(self.function), "begun", None) if context.is_plain(self.function) else None
        of_sum = x, result, factor, scale, self.norm
        if begin is not None and torch.is_grad_enabled() and (forked := norm.added(*of_sum)) is not None:
            after = begin(self.function, forked)
            return forked.x, after
        x, normed = norm.add(*of_sum)
        # Without a call that is left: this may be computed again, by what takes tensors alone.
        return x, self.function(normed) if begin is None else finished(begin(self.function, normed))

    @property
    def scale(self) -> Tensor | None:
        """The factors of the layer scale, (C,)."""
        return None if self.layer_scale is None else self.layer_scale.gamma

    @property
    def feed_forward(self) -> feed_forward.Parts | None:
        """The parts of its function, if this is one of our feed-forward networks, to which nothing is attached."""
        function = self.function
        if type(function) in (FeedForward, MixFeedForward) and context.is_plain(function):
            return cast("feed_forward.Parts | None", function.parts)
        return None

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
        if self.recompute == memory.NOTHING or not self.training:
            return function(*inputs)
        return self._recomputed(self.recompute, function, *inputs)

    def wholly(self, function: Callable[..., T], *inputs: Any) -> T:
        """``function(*inputs)``, computed again if ``recompute`` says "all"."""
        if self.recompute != memory.ALL or not self.training:
            return function(*inputs)
        return self._recomputed(memory.ALL, function, *inputs)

    def lightly(self, function: Callable[..., T], *inputs: Any) -> T:
        """``function(*inputs)``, without expensive attention in it, computed again if ``recompute`` says
        "all but attention"."""
        if self.recompute != memory.ALL_BUT_ATTENTION or not self.training:
            return function(*inputs)
        if type(function) is Sublayer:  # it can do so by itself
            return cast(T, cast(Any, function)(*inputs, True))
        return self._recomputed(memory.ALL, function, *inputs)

    def _recomputed(self, what: str, function: Callable[..., T], *inputs: Any) -> T:
        # A module that a user has put into this part may draw random numbers.
        whole = function if isinstance(function, nn.Module) else self
        random = not context.is_plain_tree(whole)
        return memory.recomputed(function, *inputs, what=what, random=random, modules=[self])


class ResidualBlock(Recomputable):
    """What all blocks share: branches that one ``drop_path`` drops.

    The random numbers are drawn before anything else: what computes the block again does not draw them again, and a
    compiler sees a tensor, not a rate that differs from block to block.
    """

    drop_path: DropPath
    branch_count: int = 2
    """Draws of a forward pass."""
    compiled: Callable[..., Any] | None = None
    """In place of ``computed``, with this block as its first argument; see ``compile_blocks``."""
    shares: bool = False
    """Whether ``compiled`` serves blocks that drop branches besides this one, which drops none."""

    def computed(self, drawn: Sequence[Tensor], *inputs: Any) -> Any:
        """The block's result.

        Args:
            drawn: what the branches are multiplied by, (B,) each; empty where ``drop_path`` itself is called.
        """
        raise NotImplementedError

    def drawn_and_computed(self, x: Tensor, *inputs: Any) -> Any:
        """``computed``, by its compiled form if there is one.

        Args:
            x: holds the samples.
        """
        drop_path = self._modules["drop_path"]  # `self.drop_path` takes PyTorch as long as a launch
        drawn = drop_path.draws(x, self.branch_count) if isinstance(drop_path, DropPath) else ()
        if self.compiled is None and not narrow.graph.in_blocks:
            return self.computed(drawn, *inputs)
        if self.compiled is None or not context.is_eager():
            return computed(self, drawn, *inputs)
        if self.shares and self.training and not drawn:
            drawn = x.new_ones((self.branch_count, len(x))).unbind()
        return self.compiled(self, drawn, *inputs)

    def drops(self, drawn: Sequence[Tensor]) -> Sequence[Any]:
        """What drops each branch."""
        return [*map(Drawn, drawn)] if drawn else (self._modules["drop_path"],) * self.branch_count

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled and copied: no compiled form, which belongs to this block in this process."""
        state = dict(super().__getstate__())
        state.pop("compiled", None)
        state.pop("shares", None)
        return state


def computed(block: ResidualBlock, drawn: Sequence[Tensor], *inputs: Any) -> Any:
    """What is compiled of a block: not its own call, so that hooks on the block run as always."""
    with narrow.copies_of_block(block):
        return block.computed(drawn, *inputs)


def compile_blocks(blocks: Mapping[nn.Module, int], **options: Any) -> None:
    """Compiles each block in place; those of one kind share graphs, see ``ops.compiling``.

    Args:
        blocks: each with the number of its grid: blocks one after the other have grids of one size.
        options: of ``torch.compile``.
    """
    ours = {block: grid for block, grid in blocks.items() if isinstance(block, ResidualBlock)}
    for block in blocks:
        if not isinstance(block, ResidualBlock):
            block.compile(**options)
    found = compiling.compiled(ours, computed, **options)
    rates = [block.drop_path.rate if type(block.drop_path) is DropPath else None for block in ours]
    dropping = {kind for rate, (_, kind) in zip(rates, found, strict=True) if rate}
    for block, rate, (function, kind) in zip(ours, rates, found, strict=True):
        block.compiled, block.shares = function, rate == 0 and kind in dropping


@context.plain
class Block(ResidualBlock):
    """The pre-norm transformer block over grids (B, H, W, C), or tokens (B, N, C) where ``attn`` takes these:
    x + ls1(attn(norm1(x))), then x + ls2(ffn(norm2(x))).

    Args:
        layer_scale: the initial value of the factors ls1 and ls2 (``LayerScale``); None for a block without them.
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        ffn: nn.Module,
        norm_eps: float,
        drop_path: float,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=norm_eps)
        self.attn = attn
        self.norm2 = LayerNorm(dim, eps=norm_eps)
        self.ffn = ffn
        self.drop_path = DropPath(drop_path)
        self.ls1, self.ls2 = (None if layer_scale is None else LayerScale(dim, layer_scale) for _ in range(2))

    def forward(self, x: Tensor, shared: Any = None) -> Tensor:
        """Args:
        shared: the second argument of ``attn``, if it takes one.
        """
        return self.drawn_and_computed(x, x, shared)

    def computed(self, drawn: Sequence[Tensor], x: Tensor, shared: Any = None) -> Tensor:
        return self.recomputed(self.residuals, x, shared, *drawn)

    def residuals(self, x: Tensor, shared: Any, *drawn: Tensor) -> Tensor:
        first, second = self.drops(drawn)
        parts: dict[str, Any] = self._modules
        attn = Branch(parts["norm1"], parts["attn"], first, parts.get("ls1"), shared)
        ffn = Branch(parts["norm2"], parts["ffn"], second, parts.get("ls2"))
        with memory.saving(x, self.recompute if self.training else memory.NOTHING):
            return residual.add_branches(x, (attn, ffn), self.lightly)  # x + branch(x) of each
