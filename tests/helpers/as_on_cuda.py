"""PyTorch's operators as CUDA has them, for counts on a CPU: of our networks and of others alike."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mm_vitbackbones.ops import linear


@torch.library.custom_op("mm_vitbackbones_tests::attention", mutates_args=())
def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """In place of CUDA's memory-efficient kernel: attention with a bias that learns, and the logarithms of its sums."""
    scores = query.float() @ key.float().mT * scale + bias.float()
    return (scores.softmax(-1) @ value.float()).to(query.dtype), scores.logsumexp(-1)


@torch.library.custom_op("mm_vitbackbones_tests::attention_backward", mutates_args=())
def attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    out: Tensor,
    sums: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients, of which that of the bias has the shape of the scores."""
    q, k, v, wide = (x.float() for x in (query, key, value, grad))
    weights = (q @ k.mT * scale + bias.float()).softmax(-1)
    of_weights = wide @ v.mT
    of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True))
    found = of_scores @ k * scale, of_scores.mT @ q * scale, weights.mT @ wide, of_scores
    return tuple(x.to(query.dtype) for x in found)  # type: ignore[return-value]


@torch.library.custom_op("mm_vitbackbones_tests::wide_product", mutates_args=())
def wide_product(a: Tensor, b: Tensor) -> Tensor:
    """In place of ``torch.mm(a, b, out_dtype=torch.float32)``, which a CPU does not have."""
    return a.float() @ b.float()


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, grad: Tensor, _: Any) -> Any:
    saved = ctx.saved_tensors  # asked for once: a checkpoint gives them once
    bias = saved[3]
    *found, of_bias = attention_backward(grad, *saved, ctx.scale)
    return *found, of_bias.sum_to_size(bias.shape).to(bias.dtype), None


attention.register_autograd(_backward, setup_context=_keep)
attention.register_fake(lambda query, key, value, bias, scale: (query.new_empty(query.shape), _sums(query)))
attention_backward.register_fake(
    lambda grad, query, key, value, bias, out, sums, scale: (
        *map(torch.empty_like, (query, key, value)),
        query.new_empty(*query.shape[:-1], key.shape[-2]),
    )
)
wide_product.register_fake(lambda a, b: a.new_empty(a.shape[0], b.shape[1], dtype=torch.float32))


def _sums(query: Tensor) -> Tensor:
    return query.new_empty(query.shape[:-1], dtype=torch.float32)


def use(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's autocast runs layer_norm in fp32, a CPU's does not. And CUDA has a kernel for attention with a bias that
    learns, where a CPU multiplies matrices, and products of narrow matrices in fp32."""
    norm, attend = F.layer_norm, F.scaled_dot_product_attention

    def layer_norm(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return norm(x, shape, weight, bias, eps)
        with torch.autocast("cpu", enabled=False):
            return norm(x.float(), shape, weight, bias, eps)

    def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        mask = kwargs.get("attn_mask", args[0] if args else None)
        if mask is None or not mask.requires_grad:
            return attend(query, key, value, *args, **kwargs)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
        scale = kwargs.get("scale") or 1 / math.sqrt(query.shape[-1])
        return attention(*(x.to(dtype) for x in (query, key, value, mask)), scale)[0]

    def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
        return wide_product(a, b) if a.dtype != dtype == torch.float32 else ordinary(a, b, dtype)

    ordinary = linear.product
    monkeypatch.setattr(linear, "product", product)
    monkeypatch.setattr(F, "layer_norm", layer_norm)
    monkeypatch.setattr(F, "scaled_dot_product_attention", scaled_dot_product_attention)
