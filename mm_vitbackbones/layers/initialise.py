from __future__ import annotations

import math

from torch import nn


def init_linears_and_norms(module: nn.Module) -> None:
    """Linear: truncated normal of std 0.02, bias 0. LayerNorm: 1 and 0 (PVT, PVTv2, MiT, Swin, CoaT)."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def init_convs_fan_out(module: nn.Module) -> None:
    """Convolution: normal of variance 2 / fan-out (groups taken into account), bias 0 (PVTv2, MiT)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            fan_out = part.out_channels * math.prod(part.kernel_size) // part.groups
            nn.init.normal_(part.weight, std=math.sqrt(2.0 / fan_out))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
