"""Linear maps and convolutions with the activation that follows them.

In eager fp32 inference on a CPU, oneDNN's fused operators compute each pair in one pass over memory: the separate
passes cost page faults and a fifth of the time. Everywhere else the modules are called one after the other. PyTorch
offers the operators to its own compiler and promises no stable signature, so they are tried once against the
references; where they are absent or have changed, the references run.
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.ops import bias_sums, context, depthwise, memory
from mm_vitbackbones.ops.chained import Forked, finished


def usable(x: Tensor) -> bool:
    """Whether a call with ``x`` is eager fp32 inference on a CPU, and this PyTorch has the operators."""
    return context.is_fp32_inference_on_cpu(x) and _operators_work()


FEW_TOKENS, LARGE_WEIGHT = 128, 2**18
"""oneDNN reorders a weight at each call, which so few tokens do not pay for if it has so many elements, and a single
token, such as a class token, in no case."""


def linear(x: Tensor, layer: nn.Module, again: bool = False) -> Tensor:
    """``layer(x)`` of an ``nn.Linear``: (..., C) -> (..., C').

    Args:
        again: whether training computes the result again instead of keeping it.
    """
    if usable(x) and context.is_plain(layer) and not _few_for(x, layer):
        return _linear(x, layer, "none")
    return memory.cheap(layer, x) if again else bias_sums.linear(x, layer)


def linear_relu(x: Tensor, layer: nn.Module) -> Tensor:
    """``relu(layer(x))``: (..., C) -> (..., C')."""
    if usable(x) and context.is_plain(layer) and not _few_for(x, layer):
        return _linear(x, layer, "relu")
    return F.relu(bias_sums.linear(x, layer))


def linear_gelu(x: Tensor, layer: nn.Module) -> Tensor:
    """``gelu(layer(x))``: (..., C) -> (..., C'). Training computes the GELU again instead of keeping its result."""
    if usable(x) and context.is_plain(layer) and not _few_for(x, layer):
        return _linear(x, layer, "gelu")
    return memory.cheap(F.gelu, bias_sums.linear(x, layer))


def conv_gelu(grid: Tensor | Forked, conv: nn.Module) -> Tensor:
    """``gelu(conv(grid))`` of a convolution over grids: (B, H, W, C) -> (B, H', W', C'). Training computes both again
    instead of keeping their results, which suits depthwise convolutions."""
    if isinstance(grid, Forked):
        if depthwise.serves(grid, [conv], known=True):
            return depthwise.then_gelu(grid, conv)
        grid = finished(grid)
    if usable(grid) and context.is_plain(conv):
        return _conv_gelu(grid, conv)
    if depthwise.serves(grid, [conv]):
        return memory.cheap(functools.partial(depthwise.run, convs=[conv], gelu=True), grid)
    return memory.cheap(F.gelu, memory.cheap(conv, grid))


def _few_for(x: Tensor, layer: nn.Module) -> bool:
    tokens = x.numel() // x.shape[-1]
    return tokens == 1 or (tokens < FEW_TOKENS and cast(Tensor, layer.weight).numel() > LARGE_WEIGHT)


def linear_by(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear(x, weight, bias)``."""
    if usable(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _linear(x: Tensor, layer: nn.Module, activation: str) -> Tensor:
    algorithm = "none" if activation == "gelu" else ""
    return torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, activation, [], algorithm)


def _conv_gelu(grid: Tensor, conv: nn.Module) -> Tensor:
    return convolution(grid, conv, cast(Tensor, conv.weight), cast("Tensor | None", conv.bias), "gelu")


def convolution(grid: Tensor, conv: Any, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """``activation(conv(grid))`` with another weight and bias, where ``usable``: (B, H, W, C) -> (B, H', W', C').

    Args:
        conv: says how the convolution is done.
        activation: ``"gelu"`` or ``"none"``.
    """
    out = torch.ops.mkldnn._convolution_pointwise(
        grid.permute(0, 3, 1, 2),
        weight,
        bias,
        conv.padding,
        conv.stride,
        conv.dilation,
        conv.groups,
        activation,
        [],
        "none" if activation == "gelu" else "",
    )
    return out.permute(0, 2, 3, 1)


@functools.cache
def _operators_work() -> bool:
    """Tries the operators once. A thread of its own does it: modes, autocast and default devices of the first caller
    are not in force there, so they neither count nor change the trial."""
    with ThreadPoolExecutor(1) as thread, torch.random.fork_rng(devices=[]):
        return thread.submit(_equal_their_parts).result()


@torch.no_grad()
def _equal_their_parts() -> bool:
    grid, layer = torch.randn(1, 3, 4, 8, dtype=torch.float32), nn.Linear(8, 8, dtype=torch.float32)
    conv = nn.Conv2d(8, 8, 3, padding=1, groups=8, dtype=torch.float32)
    linear = F.linear(grid, layer.weight, layer.bias)  # no module is called: hooks on all modules would see it
    maps = F.gelu(F.conv2d(grid.permute(0, 3, 1, 2), conv.weight, conv.bias, padding=1, groups=8))
    try:
        return (
            torch.allclose(_linear(grid, layer, "none"), linear, atol=1e-5)
            and torch.allclose(_linear(grid, layer, "relu"), F.relu(linear), atol=1e-5)
            and torch.allclose(_linear(grid, layer, "gelu"), F.gelu(linear), atol=1e-5)
            and torch.allclose(_conv_gelu(grid, conv), maps.permute(0, 2, 3, 1), atol=1e-5)
        )
    except (AttributeError, RuntimeError, TypeError):
        return False
