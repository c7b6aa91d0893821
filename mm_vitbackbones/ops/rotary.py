"""Rotary positions: pairs of channels, turned by an angle that grows with the position (Su et al. 2021, RoFormer).

On a grid of patches half of the pairs turn with the row and half with the column (DINOv3, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.ops import context, head_maps, linear, memory, narrow
from mm_vitbackbones.ops.chained import Forked, then
from mm_vitbackbones.ops.once import once_differentiable, typed


class Rotation(NamedTuple):
    """How each token turns: the cosine and the sine of the angles of its d/2 pairs of channels, in each head."""

    cos: Tensor
    """(N, 1, 1, d/2)"""
    sin: Tensor
    """(N, 1, 2, d/2): minus the sine, which turns the second channels of the pairs into the first, and the sine."""


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
        sin = angles.sin()
        return Rotation(angles.cos().unsqueeze(1), torch.stack((-sin, sin), dim=2))


def rotate(tokens: Tensor, rotation: Rotation, num_heads: int) -> Tensor:
    """Turns queries or keys: (B, N, C) -> (B, N, C), in fp32 and back."""
    halves = tokens.unflatten(-1, (num_heads, 2, -1))
    if not context.is_eager():
        return _turn_in_graphs(halves, *rotation).flatten(-3)
    turned = _Turned.apply(halves, *rotation, 1) if torch.is_grad_enabled() else _turn(halves, *rotation, 1)
    return turned.flatten(-3)


def reference(halves: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The first and the second channels of all pairs, turned: (B, N, h, 2, d/2) -> (B, N, h, 2, d/2)."""
    with context.autocast_to(halves.device, None):
        first, second = halves.to(cos.dtype).unbind(-2)
        cos, (minus, plus) = cos.squeeze(1), sin.unbind(-2)
        return torch.stack((first * cos + second * minus, second * cos + first * plus), dim=-2).to(halves.dtype)


def _turn_in_graphs(halves: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``reference`` in fewer operators: each block of a graph has them twice."""
    with context.autocast_to(halves.device, None):
        wide = typed(halves, cos.dtype)
        return typed(wide * cos + wide.flip(-2) * sin, halves.dtype)


def _turn(halves: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    """``reference`` in fewer passes; ``sign``: -1 turns back. Autocast leaves these operators as they are."""
    turned = halves * cos
    first, second = halves.unbind(-2)
    of_first, of_second = turned.unbind(-2)
    minus, plus = sin.unbind(-2)
    of_first.addcmul_(second, minus, value=sign)
    of_second.addcmul_(first, plus, value=sign)
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


# ---- with the linear maps before it, on CUDA


def to_heads(
    tokens: Tensor | Forked, layers: Sequence[nn.Module], rotation: Rotation, num_heads: int
) -> tuple[Tensor, ...] | None:
    """Queries and keys, turned, and values: (B, N, C) -> each (B, h, N, d). None as for ``head_maps.to_heads``, except
    that the linear maps need no bias.

    Args:
        layers: the linear maps that make queries, keys and values of tokens.
    """
    found = linear.on_cuda(tokens, *layers)
    if found is None:
        return None
    *parameters, dtype = found
    weights, biases = parameters[::2], parameters[1::2]
    if torch.is_grad_enabled() or isinstance(tokens, Forked):
        if len({parameter.dtype for parameter in parameters if parameter is not None}) > 1:
            return None
        inputs = *rotation, dtype, num_heads, *weights, *biases
        return then(tokens, _ToTurnedHeads, *inputs)
    rows = [linear.mapped(tokens, weight, bias, dtype) for weight, bias in zip(weights, biases, strict=True)]
    for each in rows[:2]:
        _turn_in_place(each, rotation, num_heads, 1)
    return tuple([each.view(*tokens.shape[:2], num_heads, -1).transpose(1, 2) for each in rows])


def _turn_in_place(tokens: Tensor, rotation: Rotation, num_heads: int, sign: int) -> None:
    """``_turn`` of the first ``num_heads`` heads of tokens (B, N, C'), in one pass less."""
    cos, sin = rotation
    halves = tokens.view(*tokens.shape[:2], -1, 2, cos.shape[-1])[:, :, :num_heads]
    torch.addcmul(halves * cos, halves.flip(-2), sin, value=sign, out=halves)


class _ToTurnedHeads(torch.autograd.Function):
    """``to_heads``: one product, whose result holds all heads. Queries and keys are turned where they are."""

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        cos: Tensor,
        sin: Tensor,
        dtype: torch.dtype,
        num_heads: int,
        *parameters: Tensor | None,
    ) -> tuple[Tensor, ...]:
        weights, biases = cast("tuple[Tensor, ...]", parameters[:3]), parameters[3:]
        wide = weights[0].dtype
        ctx.shape, ctx.width, ctx.dtypes = tokens.shape, weights[0].shape[0], (tokens.dtype, wide, wide)
        ctx.rotation, ctx.num_heads = Rotation(cos, sin), num_heads
        weight = torch.cat([narrow.of(each, dtype) for each in weights])
        x = typed(tokens.reshape(-1, tokens.shape[-1]), dtype)
        if memory.state.policy == memory.LEAST:
            linear.keep_least(ctx, tokens, x, weight)
        else:
            ctx.again = None
            ctx.save_for_backward(weight, x)
        bias, missing = None, [each is None for each in biases]
        if not all(missing):
            bias = torch.cat([x.new_zeros(ctx.width) if each is None else narrow.of(each, dtype) for each in biases])
        rows = F.linear(x, weight, bias)
        _turn_in_place(rows.view(*tokens.shape[:2], -1), ctx.rotation, 2 * num_heads, 1)
        return head_maps.split_heads(rows, tokens.shape[0], 3, num_heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        needed = ctx.needs_input_grad
        grad = head_maps.join_heads(grads, ctx.width)
        _turn_in_place(grad.view(*ctx.shape[:2], -1), ctx.rotation, 2 * ctx.num_heads, -1)
        of_x, *of_both = linear.gradients(ctx, grad, wanted=(needed[0], any(needed[5:8]), any(needed[8:])))
        sizes = [ctx.width] * 3
        found = [x for whole in of_both for x in ((None,) * 3 if whole is None else whole.split_with_sizes(sizes))]
        of_parameters = [part if wanted else None for part, wanted in zip(found, needed[5:], strict=True)]
        return None if of_x is None else of_x.view(ctx.shape), None, None, None, None, *of_parameters
