"""Networks in half precision with norms and softmax in single precision, as a graph that says so itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

NARROW = frozenset(
    {
        F.linear,
        F.conv1d,
        F.conv2d,
        F.conv_transpose2d,
        torch.conv2d,
        torch.matmul,
        torch.bmm,
        torch.baddbmm,
        torch.einsum,
        Tensor.matmul,
        Tensor.__matmul__,
        Tensor.bmm,
        torch.nn.functional.bilinear,
    }
)
"""Products: their floating-point inputs become fp16."""

WIDE = frozenset(
    {
        F.layer_norm,
        F.group_norm,
        F.batch_norm,
        F.instance_norm,
        F.normalize,
        F.softmax,
        torch.layer_norm,
        torch.group_norm,
        torch.batch_norm,
        torch.softmax,
        Tensor.softmax,
        torch.logsumexp,
        Tensor.logsumexp,
        torch.var,
        Tensor.var,
    }
)
"""Their inputs become fp32, and their result fp16 again, if the call asks for no precision by ``dtype``."""

WIDE_FOR_GOOD = frozenset({torch.exp, Tensor.exp, torch.log, Tensor.log})
"""Their inputs and results become fp32: the exponential of 12 has no place in fp16."""


class HalfPrecision(TorchFunctionMode):
    """Within it, products are computed in fp16, and norms and softmax in fp32."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention and not {"is_causal", "enable_gqa"} & kwargs.keys():
            return _attention(*args, **kwargs)
        if function in NARROW:
            return function(*tree_map(_to(torch.float16), args), **tree_map(_to(torch.float16), kwargs))
        if function in WIDE:
            found = function(*tree_map(_to(torch.float32), args), **tree_map(_to(torch.float32), kwargs))
            return found if kwargs.get("dtype") else tree_map(_to(torch.float16), found)
        if function in WIDE_FOR_GOOD:
            return function(*tree_map(_to(torch.float32), args), **tree_map(_to(torch.float32), kwargs))
        return function(*args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    *,
    scale: float | None = None,
) -> Tensor:
    """Attention without dropout, whose products PyTorch would take back to fp32 on its way into a graph."""
    narrow = _to(torch.float16)
    query = narrow(query) * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = (query @ narrow(key).transpose(-2, -1)).float()
    if attn_mask is not None:
        off = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if off else scores + attn_mask.float()
    found: Tensor = scores.softmax(-1).half() @ narrow(value)
    return found


def _to(dtype: torch.dtype) -> Callable[[Any], Any]:
    other = torch.float32 if dtype == torch.float16 else torch.float16
    return lambda value: value.to(dtype) if isinstance(value, Tensor) and value.dtype == other else value


class Half(nn.Module):
    """A copy of a network in half precision. Its image and its results are in single precision."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        narrow = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)
        for module in self.network.modules():
            if isinstance(module, narrow):
                module.half()

    def forward(self, image: Tensor) -> Any:
        with HalfPrecision():
            found = self.network(image)
        return tree_map(_to(torch.float32), found)
