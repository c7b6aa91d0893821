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
    """How each token turns: the cosine and the sine of its angles, (N, d) of a head of d channels, whose halves are
    alike."""

    cos: Tensor
    sin: Tensor


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
        angles = torch.cat((angles, angles), dim=-1)
        angles = torch.cat((angles.new_zeros(others, angles.shape[-1]), angles))
        return Rotation(angles.cos(), angles.sin())


def rotate(tokens: Tensor, rotation: Rotation, num_heads: int) -> Tensor:
    """Turns queries or keys: (B, N, C) -> (B, N, C), in fp32 and back."""
    with context.autocast_to(tokens.device, None):
        heads = tokens.unflatten(-1, (num_heads, -1))
        cos, sin = (part.unsqueeze(1) for part in rotation)
        turned = _Turned.apply(heads, cos, sin, 1) if context.is_eager() else reference(heads, cos, sin)
        return turned.flatten(-2)


def reference(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``heads`` (..., d), turned."""
    wide = heads.to(cos.dtype)
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-second, first), dim=-1) * sin).to(heads.dtype)


class _Turned(torch.autograd.Function):
    """``reference`` in fewer passes, which keeps no tokens. Its gradient turns back."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
        """``sign``: -1 turns back."""
        ctx.save_for_backward(cos, sin)
        ctx.sign = sign
        wide, half = heads * cos, heads.shape[-1] // 2
        first, second = heads.split(half, dim=-1)
        wide[..., :half].addcmul_(second, sin[..., :half], value=-sign)
        wide[..., half:].addcmul_(first, sin[..., half:], value=sign)
        return wide.to(heads.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        return _Turned.apply(grad, cos, sin, -ctx.sign), None, None, None
