"""2x2 neighbours as one token: their norm, and a linear map to fewer channels (Swin, section 3.1).

In training on CUDA they are one function, which keeps the grid alone: the neighbours in order and their norm, together
three times as large, are made again in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.ops import linear, narrow
from mm_vitbackbones.ops import norm as norms
from mm_vitbackbones.ops.kernels import norm as kernels
from mm_vitbackbones.ops.once import direct, once_differentiable, typed


def merged(grid: Tensor, norm: nn.Module, reduction: nn.Module) -> Tensor:
    """``reduction(norm(neighbours))``: (B, H, W, C) -> (B, H/2, W/2, C').

    Args:
        norm: of the 4C channels of a token.
        reduction: a linear map of tokens, 4C -> C', without a bias in Swin.
    """
    found = linear.on_cuda(grid, reduction) if torch.is_grad_enabled() and norms.is_fast(grid, norm) else None
    if found is None or found[1] is not None:
        return reduction(norms.for_linear(neighbours(grid), norm, again=False))
    weight, _, dtype = found
    return _merged(grid, *norms.parameters_of(norm), weight, dtype)


def neighbours(grid: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, H/2, W/2, 4C). The official order goes down before it goes right."""
    return grid.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3)


def _apart(tokens: Tensor, shape: torch.Size) -> Tensor:
    """``neighbours``, backwards."""
    batch, rows, columns, _ = tokens.shape
    return tokens.view(batch, rows, columns, 2, 2, -1).permute(0, 1, 4, 2, 3, 5).reshape(shape)


class _Merged(torch.autograd.Function):
    """See ``merged``."""

    @staticmethod
    def forward(
        ctx: Any,
        grid: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        eps: float,
        weight: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.eps, ctx.dtypes = eps, (norm_weight.dtype, norm_bias.dtype, weight.dtype)
        weight = narrow.of(weight, dtype)
        ctx.save_for_backward(grid, norm_weight, norm_bias, weight)
        return F.linear(kernels.layer_norm(neighbours(grid), norm_weight, norm_bias, eps, dtype)[0], weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        grid, norm_weight, norm_bias, weight = ctx.saved_tensors
        tokens, rows = neighbours(grid), grad.reshape(-1, grad.shape[-1])
        normed, statistics = kernels.layer_norm(tokens, norm_weight, norm_bias, ctx.eps, grad.dtype)
        of_weight = linear.product(rows.t(), normed.view(-1, normed.shape[-1]), ctx.dtypes[2])
        del normed
        of_normed = torch.mm(rows, weight).view(tokens.shape)
        of_tokens, *of_norm = kernels.layer_norm_backward(of_normed, None, tokens, statistics, norm_weight)
        of_norm_weight, of_norm_bias = (typed(x, dtype) for x, dtype in zip(of_norm, ctx.dtypes, strict=False))
        return _apart(of_tokens, grid.shape), of_norm_weight, of_norm_bias, None, of_weight, None


_merged = direct(_Merged)
