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
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mm_vitbackbones.ops import context, onednn, residual
from mm_vitbackbones.ops.linear import linear as linear_map
from mm_vitbackbones.ops.norm import for_linear
from mm_vitbackbones.ops.once import direct, once_differentiable

Pair = tuple[Tensor, Tensor]
"""Class tokens (B, 1, 1, C) and a grid (B, H, W, C)."""


class Rows(NamedTuple):
    """The tokens of all grids, then the class tokens: (B * H * W + B, C)."""

    rows: Tensor
    shape: tuple[int, int, int]
    """B, H and W."""

    def with_grid(self) -> tuple[Tensor, Tensor]:
        """The rows, and their grid as a view (B, H, W, C), to be used besides them."""
        rows, grid = _with_grid(self.rows, self.shape[0])
        return rows, grid.view(*self.shape, -1)

    def per_row(self, factor: Tensor) -> Tensor:
        """One number for each image (B,) -> one for each row (B * H * W + B,)."""
        batch, height, width = self.shape
        return torch.cat((factor.unsqueeze(1).expand(batch, height * width).flatten(), factor))


Tokens = Pair | Rows


def join(cls: Tensor, grid: Tensor, parts: nn.Module) -> Tokens:
    """Class tokens and a grid in the form that is the fastest for these modules. Modules that somebody observes or has
    changed are called with a pair."""
    cuda = context.device_type(grid) == "cuda" and context.is_eager() and cls.dtype == grid.dtype
    return _rows(cls, grid) if cuda and context.is_plain_tree(parts) else (cls, grid)


def _rows(cls: Tensor, grid: Tensor) -> Rows:
    batch, height, width = grid.shape[:3]
    return Rows(torch.cat((grid.flatten(0, 2), cls.flatten(0, 2))), (batch, height, width))


def pair(tokens: Tokens) -> Pair:
    """Class tokens and a grid, of any tokens."""
    if not isinstance(tokens, Rows):
        return tokens
    batch, channels = tokens.shape[0], tokens.rows.shape[-1]
    grid, cls = (part.squeeze(0) for part in split(tokens.rows.unsqueeze(0), len(tokens.rows) - batch))
    return cls.view(batch, 1, 1, channels), grid.view(*tokens.shape, channels)


def every(function: Callable[[Tensor], Tensor], tokens: Tokens) -> Tokens:
    """A function of each token alone."""
    if isinstance(tokens, Rows):
        return Rows(function(tokens.rows), tokens.shape)
    return function(tokens[0]), function(tokens[1])


def linear(tokens: Tokens, layer: nn.Module) -> Tokens:
    """The same linear map of each token: C -> C'."""
    if isinstance(tokens, Rows):
        return Rows(linear_map(tokens.rows, layer), tokens.shape)
    return layer(tokens[0]), onednn.linear(tokens[1], layer)


def release(tokens: Tokens) -> None:
    """``context.release`` of the grid."""
    if not isinstance(tokens, Rows):
        context.release(tokens[1])


def branch_of(tokens: Tokens, norm: nn.Module, attn: Callable[[Tokens], Tokens], parts: Sequence[nn.Module]) -> Pair:
    """``attn(norm(x))``.

    Args:
        parts: the modules that this calls.
    """
    if isinstance(tokens, Rows):
        return pair(_of_norm(tokens, norm, attn))
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
    x = tokens.rows if isinstance(tokens, Rows) else tokens[1]
    ffn = ffn._replace(drop_path=ffn.drop_path.of(tokens).draw(x))
    return every(lambda x: residual.add(x, partial(lightly, ffn.of), ffn.parts, ffn.reach), tokens)


def add_fresh(tokens: Tokens, cls: Tensor, grid: Tensor, drop_path: Any) -> Tokens:
    """``residual.add_fresh`` of both, of branches that ``drop_path`` drops."""
    if isinstance(tokens, Rows):
        results = _rows(cls, grid).rows
        return Rows(residual.add_scaled(tokens.rows, results, drop_path.of(tokens).factor(results)), tokens.shape)
    drop = drop_path.draw(grid)
    return residual.add_fresh(tokens[0], drop(cls)), residual.add_fresh(tokens[1], drop(grid))


def split(tokens: Tensor, count: int) -> Pair:
    """The first ``count`` tokens of (B, N, C) and the others, as views: their gradients are put together in one pass.

    Unlike the results of PyTorch's own ``split``, those of eager mode may be overwritten: levels may be, by their user.
    """
    if not context.is_eager():
        return tokens[:, :count], tokens[:, count:]
    first, others = torch.unsafe_split_with_sizes(tokens, (count, tokens.shape[1] - count), 1)
    return first, others


class _WithGrid(torch.autograd.Function):
    """Rows and a part of them. PyTorch's gradient of the part would be rows of zeros and a sum of rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        ctx.batch = batch
        return rows.view_as(rows), rows[:-batch]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_rows: Tensor, of_grid: Tensor) -> Any:
        # Nobody else has this gradient: its only source is the function that has taken the rows.
        of_rows[: -ctx.batch] += of_grid
        return of_rows, None


_with_grid = direct(_WithGrid)
