"""Rotary positions: pairs of channels, turned by an angle that grows with the position (Su et al. 2021, RoFormer).

On a grid of patches half of the pairs turn with the row and half with the column (DINOv3, section 3).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mm_vitbackbones.ops import context


class Rotation(NamedTuple):
    """How each token turns: the cosine and the sine of the angles of its d/2 pairs of channels, in each head."""

    cos: Tensor
    """(N, 1, 1, d/2)"""
    sin: Tensor
    """(N, 1, d/2)"""


def rotation(periods: Tensor, height: int, width: int, others: int = 0) -> Rotation:
    """The rotation of the patches of a grid (H, W), row by row, after ``others`` tokens that do not turn.

    The centre of patch (i, j) is at y = 2 (i + 0.5) / H - 1 and x = 2 (j + 0.5) / W - 1. Channels c and c + d/2 are a
    pair. The first d/4 pairs turn by 2 pi y / period, the others by 2 pi x / period.

    Args:
        periods: (d/4,).
    """
    with context.autocast_to(periods.device, None):
        periods = periods.to(torch.promote_types(periods.dtype, torch.float32))
        y, x = (
            2 * (torch.arange(side, device=periods.device, dtype=periods.dtype) + 0.5) / side - 1
            for side in (height, width)
        )
        of_rows, of_columns = (2 * math.pi * line[:, None] / periods for line in (y, x))
        angles = torch.cat(
            (
                of_rows[:, None].expand(-1, width, -1),
                of_columns[None].expand(height, -1, -1),
            ),
            dim=-1,
        ).flatten(0, 1)
        angles = torch.cat((angles.new_zeros(others, angles.shape[-1]), angles)).unsqueeze(1)
        return Rotation(angles.cos().unsqueeze(1), angles.sin())


def rotate(tokens: Tensor, rotation: Rotation, num_heads: int) -> Tensor:
    """Turns queries or keys: (B, N, C) -> (B, N, C), in fp32 and back."""
    halves = tokens.unflatten(-1, (num_heads, 2, -1))
    if not context.is_eager():
        return reference(halves, *rotation).flatten(-3)
    turned = _Turned.apply(halves, *rotation, 1) if torch.is_grad_enabled() else _turn(halves, *rotation, 1)
    return turned.flatten(-3)


def reference(halves: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The first and the second channels of all pairs, turned: (B, N, h, 2, d/2) -> (B, N, h, 2, d/2)."""
    with context.autocast_to(halves.device, None):
        first, second = halves.to(cos.dtype).unbind(-2)
        cos = cos.squeeze(1)
        return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-2).to(halves.dtype)


def _turn(halves: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    """``reference`` in fewer passes; ``sign``: -1 turns back. Autocast leaves these operators as they are."""
    turned = halves * cos
    first, second = halves.unbind(-2)
    of_first, of_second = turned.unbind(-2)
    of_first.addcmul_(second, sin, value=-sign)
    of_second.addcmul_(first, sin, value=sign)
    return turned.to(halves.dtype)


class _Turned(torch.autograd.Function):
    """``_turn``, which keeps no tokens. Its gradient turns back."""

    @staticmethod
    def forward(ctx: Any, halves: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.sign = sign
        return _turn(halves, cos, sin, sign)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        turn = _Turned.apply if torch.is_grad_enabled() else _turn
        return turn(grad, cos, sin, -ctx.sign), None, None, None
