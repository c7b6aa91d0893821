"""oneDNN's fused operators: a linear map or a convolution with its bias and GELU in one pass over memory.

They serve eager fp32 inference on CPU, where the separate passes cost page faults and a fifth of the time. PyTorch
offers them to its own compiler and promises no stable signature, so ``usable`` tries them once against the plain
forms; where they are absent or have changed, the plain forms run.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.ops.context import autocast_dtype, is_compiling


def usable(grid: Tensor) -> bool:
    """Whether ``grid`` is worked on in eager fp32 inference on CPU and this PyTorch has the operators."""
    return (
        not torch.is_grad_enabled()
        and grid.device.type == "cpu"
        and grid.dtype == torch.float32
        and autocast_dtype(grid.device) is None
        and not is_compiling()
        and _operators_work()
    )


FEW_TOKENS, LARGE_WEIGHT = 128, 2**18
"""oneDNN reorders a weight at each call, which so few tokens do not pay for if it has so many elements."""


def linear(grid: Tensor, layer: nn.Linear) -> Tensor:
    """Equal to ``layer(grid)``: (..., C) -> (..., C')."""
    if _few_for(grid, layer):
        return layer(grid)
    return torch.ops.mkldnn._linear_pointwise(grid, layer.weight, layer.bias, "none", [], "")


def linear_gelu(grid: Tensor, layer: nn.Linear) -> Tensor:
    """Equal to ``F.gelu(layer(grid))``: (..., C) -> (..., C')."""
    if _few_for(grid, layer):
        return F.gelu(layer(grid))
    return torch.ops.mkldnn._linear_pointwise(grid, layer.weight, layer.bias, "gelu", [], "none")


def conv_gelu(grid: Tensor, conv: nn.Conv2d) -> Tensor:
    """Equal to ``F.gelu(conv(grid))`` for a convolution over grids: (B, H, W, C) -> (B, H', W', C')."""
    out = torch.ops.mkldnn._convolution_pointwise(
        grid.permute(0, 3, 1, 2),
        conv.weight,
        conv.bias,
        conv.padding,
        conv.stride,
        conv.dilation,
        conv.groups,
        "gelu",
        [],
        "none",
    )
    return out.permute(0, 2, 3, 1)


def _few_for(grid: Tensor, layer: nn.Linear) -> bool:
    return grid.numel() < FEW_TOKENS * grid.shape[-1] and layer.weight.numel() > LARGE_WEIGHT


@functools.cache
def _operators_work() -> bool:
    from mm_vitbackbones.layers.conv import ChannelsLastConv2d

    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
        grid, layer, conv = torch.randn(1, 3, 4, 8), nn.Linear(8, 8), ChannelsLastConv2d(8, 8, 3, padding=1, groups=8)
        try:
            return (
                torch.allclose(linear(grid, layer), layer(grid), atol=1e-5)
                and torch.allclose(linear_gelu(grid, layer), F.gelu(layer(grid)), atol=1e-5)
                and torch.allclose(conv_gelu(grid, conv), F.gelu(conv(grid)), atol=1e-5)
            )
        except (AttributeError, RuntimeError, TypeError):
            return False
