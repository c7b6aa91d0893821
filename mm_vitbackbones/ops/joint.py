"""Class tokens and grids that pass through the same norms and linear maps (CoaT).

In PiT both are tokens of one tensor (B, N, C) throughout a stage, as all attend to all. In CoaT convolutions come
between, which want grids. On a CPU both are a pair of tensors: putting them into one would be a copy. On CUDA the calls
for a class token would be as many as those for its grid, and take as long as any launch. There both are ``Rows`` of one
tensor, which holds all grids first, then all class tokens, so that grids stay contiguous.

B images, H x W grid, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from mm_vitbackbones.ops import bias_sums, context, depthwise, onednn, residual
from mm_vitbackbones.ops.kernels import depthwise as kernels
from mm_vitbackbones.ops.linear import linear as linear_map
from mm_vitbackbones.ops.norm import for_linear
from mm_vitbackbones.ops.once import direct, once_differentiable

Pair = tuple[Tensor, Tensor]
"""Class tokens (B, 1, 1, C) and a grid (B, H, W, C)."""


Shape = tuple[int, int, int]
"""B, H and W of a grid."""


class Rows(NamedTuple):
    """The tokens of all grids, then the class tokens: (B * H * W + B, C)."""

    rows: Tensor
    shape: Shape

    def per_row(self, factor: Tensor) -> Tensor:
        """One number for each image (B,) -> one for each row (B * H * W + B,)."""
        batch, height, width = self.shape
        return torch.cat((factor.unsqueeze(1).expand(batch, height * width).flatten(), factor))


Tokens = Pair | Rows


class Shared(Protocol):
    """What blocks share."""

    @property
    def cpe(self) -> nn.Module:
        """Adds the result of ``conv``, which is a part of it, to a grid."""

    @property
    def crpe(self) -> nn.Module:
        """What attention takes of a grid of values."""

    @property
    def convs(self) -> list[nn.Module]:
        """Those of ``crpe``."""


def join(cls: Tensor, grid: Tensor, blocks: nn.Module, shared: Shared) -> Tokens:
    """Class tokens and a grid in the form that is the fastest for some blocks. Blocks that somebody observes or has
    changed get a pair; those that get rows need not ask again.

    Args:
        blocks: a list of them, or a single one.
    """
    rows = makes_rows(cls, grid, shared) and take_rows(blocks, [shared])
    return rows_of(cls, grid) if rows else (cls, grid)


def makes_rows(cls: Tensor, grid: Tensor, shared: Shared) -> bool:
    """Whether rows are the form for these tokens: on CUDA, in graphs where our operators serve; see ``join``."""
    convs = [cast(nn.Module, shared.cpe.conv)], shared.convs
    known = context.is_eager_on_cuda(grid)  # rows need fewer operators, also where no kernels run
    served = all(depthwise.serves(grid, group, known=known) for group in convs)
    return served and cls.dtype == grid.dtype and grid.numel() > 0


def take_rows(blocks: nn.Module, shared: Sequence[Shared]) -> bool:
    """Whether blocks, with what they share, may get rows; see ``join``."""
    compiled = [getattr(block, "compiled", None) is not None for block in blocks.children()]
    parts = [part for each in shared for part in (each.cpe, each.crpe)]
    return not any(compiled) and all(map(context.is_plain_tree, (blocks, *parts)))


def rows_of(cls: Tensor, grid: Tensor) -> Rows:
    """A pair as rows."""
    batch, height, width = grid.shape[:3]
    return Rows(torch.cat((grid.flatten(0, 2), cls.flatten(0, 2))), (batch, height, width))


def pair(tokens: Tokens) -> Pair:
    """Class tokens and a grid, of any tokens."""
    if not isinstance(tokens, Rows):
        return tokens
    batch, channels = tokens.shape[0], tokens.rows.shape[-1]
    grid, cls = (part.squeeze(0) for part in split(tokens.rows.unsqueeze(0), len(tokens.rows) - batch))
    return cls.view(batch, 1, 1, channels), grid.view(*tokens.shape, channels)


def add_conv(tokens: Tokens, position: Any) -> Tokens:
    """``grid + conv(grid)`` with the same class tokens.

    Args:
        position: the module that computes this sum of a grid, with ``conv``; see ``Shared.cpe``.
    """
    if not isinstance(tokens, Rows):
        return tokens[0], position(tokens[1])
    return Rows(add_convs(tokens.rows, tokens.shape, [position.conv]), tokens.shape)


def add_convs(rows: Tensor, shapes: Sequence[int], convs: Sequence[nn.Module]) -> Tensor:
    """``add_conv`` of the rows of some levels, each with its own convolution.

    Args:
        shapes: B, H and W of each, in one list.
    """
    weights, biases = depthwise.parameters_of(convs)
    # In graphs the operator itself has a gradient.
    if torch.is_grad_enabled() and context.is_eager():
        return cast(Tensor, _add_convs(rows, shapes, len(weights), *weights, *biases))
    return kernels.depthwise_of_rows(rows, shapes, weights, biases)


def every(function: Callable[[Tensor], Tensor], tokens: Tokens) -> Tokens:
    """A function of each token alone."""
    if isinstance(tokens, Rows):
        return Rows(function(tokens.rows), tokens.shape)
    return function(tokens[0]), function(tokens[1])


def linear(tokens: Tokens, layer: nn.Module) -> Tokens:
    """The same linear map of each token: C -> C'."""
    if isinstance(tokens, Rows):
        return Rows(linear_map(tokens.rows, layer), tokens.shape)
    return bias_sums.linear(tokens[0], layer), onednn.linear(tokens[1], layer)


def release(tokens: Tokens) -> None:
    """``context.release`` of the grid."""
    if not isinstance(tokens, Rows):
        context.release(tokens[1])


def branch_of(tokens: Tokens, norm: nn.Module, attn: Callable[[Tokens], Tokens], parts: Sequence[nn.Module]) -> Tokens:
    """``attn(norm(x))``.

    Args:
        parts: the modules that this calls.
    """
    if isinstance(tokens, Rows):
        return _of_norm(tokens, norm, attn)
    return residual.branch_of_both(tokens, lambda x: cast(Pair, _of_norm(x, norm, attn)), parts)


def _of_norm(tokens: Tokens, norm: nn.Module, attn: Callable[[Tokens], Tokens]) -> Tokens:
    return attn(every(partial(for_linear, norm=norm), tokens))


def add_branches(
    tokens: Tokens, attn: Any, ffn: Any, parts: Sequence[nn.Module], lightly: Callable[..., Any]
) -> Tokens:
    """``residual.add_branches`` of both.

    Args:
        attn: a ``layers.Branch`` whose function takes and gives ``Tokens``.
        ffn: another, of each token alone.
        parts: the modules that its function calls.
    """
    if isinstance(tokens, Rows):
        shape, function = tokens.shape, attn.function
        attn = attn._replace(
            function=lambda rows: function(Rows(rows, shape)).rows, drop_path=attn.drop_path.of(tokens)
        )
        ffn = ffn._replace(drop_path=ffn.drop_path.of(tokens))
        return Rows(residual.add_branches(tokens.rows, (attn, ffn), lightly), shape)

    def branch(tokens: Pair) -> Pair:
        results = _of_norm(tokens, attn.norm, attn.function)
        return cast(Pair, every(attn.drop_path.draw(tokens[1]), results))

    return add_branch(residual.add_both(tokens, branch, [attn.norm, *parts]), ffn, lightly)


def add_branch(tokens: Tokens, ffn: Any, lightly: Callable[..., Any]) -> Tokens:
    """``ffn.add_to`` of both, with one draw of its drop path."""
    if isinstance(tokens, Rows):
        ffn = ffn._replace(drop_path=ffn.drop_path.of(tokens))
        return every(partial(lightly, ffn.add_to), tokens)
    ffn = ffn._replace(drop_path=ffn.drop_path.draw(tokens[1]))
    return every(lambda x: residual.add(x, partial(lightly, ffn.of), ffn.parts, ffn.reach), tokens)


def add_fresh(tokens: Tokens, cls: Tensor, grid: Tensor, drop_path: Any) -> Tokens:
    """``residual.add_fresh`` of both, of branches that ``drop_path`` drops."""
    if isinstance(tokens, Rows):
        return Rows(tokens.rows + drop_path.of(tokens)(rows_of(cls, grid).rows), tokens.shape)
    drop = drop_path.draw(grid)
    return residual.add_fresh(tokens[0], drop(cls)), residual.add_fresh(tokens[1], drop(grid))


def split(tokens: Tensor, count: int, in_use: bool = False) -> Pair:
    """The first ``count`` tokens of (B, N, C) and the others, as views: their gradients are put together in one pass.

    Unlike the results of PyTorch's own ``split``, those of eager mode may be overwritten: levels may be, by their user.

    Args:
        in_use: whether something else takes the tokens, too. In training autograd then follows what is written into
            its results.
    """
    if (in_use and torch.is_grad_enabled()) or not context.is_eager():
        return tokens[:, :count], tokens[:, count:]
    first, others = torch.unsafe_split_with_sizes(tokens, (count, tokens.shape[1] - count), 1)
    return first, others


class _AddConvs(torch.autograd.Function):
    """See ``add_convs``."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, shapes: Sequence[int], count: int, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(rows, *parameters)
        ctx.options = shapes, count
        return kernels.depthwise_of_rows(rows, shapes, parameters[:count], parameters[count:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (shapes, count), (rows, *parameters) = ctx.options, ctx.saved_tensors
        weights, biases = parameters[:count], parameters[count:]
        of_rows, of_weights, of_biases = kernels.depthwise_of_rows_backward(grad, rows, shapes, weights, biases)
        return of_rows, None, None, *of_weights, *of_biases


_add_convs = direct(_AddConvs)
