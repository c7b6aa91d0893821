"""Class tokens and grids that pass through the same norms and linear maps (CoaT).

On a CPU they are a pair of tensors: putting them into one would be a copy. On CUDA the calls for a class token would be
as many as those for its grid, and take as long as any launch. There both are ``Rows`` of one tensor, which holds all
grids first, then all class tokens, so that grids stay contiguous.

B images, H x W grid, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mm_vitbackbones.ops import context, onednn, residual

Pair = tuple[Tensor, Tensor]
"""Class tokens (B, 1, 1, C) and a grid (B, H, W, C)."""


class Rows(NamedTuple):
    """The tokens of all grids, then the class tokens: (B * H * W + B, C)."""

    rows: Tensor
    shape: tuple[int, int, int]
    """B, H and W."""

    def with_grid(self) -> tuple[Tensor, Tensor]:
        """The rows, and their grid as a view (B, H, W, C), to be used besides them."""
        rows, grid = _WithGrid.apply(self.rows, self.shape[0])
        return rows, grid.view(*self.shape, -1)

    def per_row(self, factor: Tensor) -> Tensor:
        """One number for each image (B,) -> one for each row (B * H * W + B, 1)."""
        batch, height, width = self.shape
        return torch.cat((factor.unsqueeze(1).expand(batch, height * width).flatten(), factor)).unsqueeze(1)


Tokens = Pair | Rows


def join(cls: Tensor, grid: Tensor, parts: nn.Module) -> Tokens:
    """Class tokens and a grid in the form that is the fastest for these modules. Modules that somebody observes or has
    changed are called with a pair."""
    cuda = context.device_type(grid) == "cuda" and context.is_eager() and cls.dtype == grid.dtype
    return _rows(cls, grid) if cuda and context.is_plain_tree(parts) else (cls, grid)


def like(tokens: Tokens, cls: Tensor, grid: Tensor) -> Tokens:
    """Class tokens and a grid in the form of other tokens."""
    return _rows(cls, grid) if isinstance(tokens, Rows) else (cls, grid)


def _rows(cls: Tensor, grid: Tensor) -> Rows:
    batch, height, width = grid.shape[:3]
    return Rows(torch.cat((grid.flatten(0, 2), cls.flatten(0, 2))), (batch, height, width))


def pair(tokens: Tokens) -> Pair:
    """Class tokens and a grid, of any tokens."""
    if not isinstance(tokens, Rows):
        return tokens
    # Without the restriction of `split`, that its results must not be overwritten: a level may be, by its user.
    batch, channels = tokens.shape[0], tokens.rows.shape[-1]
    grid, cls = torch.unsafe_split_with_sizes(tokens.rows, (len(tokens.rows) - batch, batch))
    return cls.view(batch, 1, 1, channels), grid.view(*tokens.shape, channels)


def every(function: Callable[[Tensor], Tensor], tokens: Tokens) -> Tokens:
    """A function of each token alone."""
    if isinstance(tokens, Rows):
        return Rows(function(tokens.rows), tokens.shape)
    return function(tokens[0]), function(tokens[1])


def linear(tokens: Tokens, layer: nn.Module) -> Tokens:
    """The same linear map of each token: C -> C'."""
    if isinstance(tokens, Rows):
        return Rows(onednn.linear(tokens.rows, layer), tokens.shape)
    return layer(tokens[0]), onednn.linear(tokens[1], layer)


def release(tokens: Tokens) -> None:
    """``context.release`` of the grid."""
    if not isinstance(tokens, Rows):
        context.release(tokens[1])


def add(tokens: Tokens, branch: Callable[[Any], Any], parts: Sequence[nn.Module]) -> Tokens:
    """``residual.add_both``."""
    if isinstance(tokens, Rows):
        return Rows(tokens.rows + branch(tokens).rows, tokens.shape)
    return residual.add_both(tokens, branch, parts)


def branch_of(tokens: Tokens, branch: Callable[[Any], Any], parts: Sequence[nn.Module]) -> Pair:
    """``residual.branch_of_both``."""
    if isinstance(tokens, Rows):
        return pair(branch(tokens))
    return residual.branch_of_both(tokens, branch, parts)


def add_fresh(tokens: Tokens, results: Any) -> Tokens:
    """``residual.add_fresh``, of both."""
    if isinstance(tokens, Rows):
        return Rows(tokens.rows + results.rows, tokens.shape)
    return residual.add_fresh(tokens[0], results[0]), residual.add_fresh(tokens[1], results[1])


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
