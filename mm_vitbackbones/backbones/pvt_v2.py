"""PVT v2: Improved Baselines with Pyramid Vision Transformer.

Wang et al., Computational Visual Media 2022, arXiv:2106.13797. Official code and weights: github.com/whai362/PVT
(Apache-2.0).

    level  stride  what happens
      0       4    7x7 overlapping patches, LayerNorm, blocks with keys and values at 1/8 of the grid, LayerNorm
      1       8    3x3 overlapping patches, LayerNorm, blocks with keys and values at 1/4, LayerNorm
      2      16    3x3 overlapping patches, LayerNorm, blocks with keys and values at 1/2, LayerNorm
      3      32    3x3 overlapping patches, LayerNorm, blocks with full attention, LayerNorm

The zero padding of the depthwise convolution in each feed-forward network replaces position embeddings. The linear
variant (b2_li) pools the keys and values of every stage to 7x7 instead. The normalised grid is what a level returns
and what the next stage takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.backbones.checks import check_spec
from mm_vitbackbones.backbones.staged import StagedBackbone
from mm_vitbackbones.layers import (
    ChannelsLastConv2d,
    ConvReduction,
    LayerNorm,
    OverlapStage,
    init_convs_fan_out,
    init_linears_and_norms,
)
from mm_vitbackbones.ops import looking
from mm_vitbackbones.ops.resize import pooled_to
from mm_vitbackbones.registry import BACKBONES


@dataclass(frozen=True)
class Arch:
    """Table 1 of the paper (the depths of stage 2 are those of the released code and weights, which differ)."""

    depths: tuple[int, ...]
    dims: tuple[int, ...] = (64, 128, 320, 512)
    num_heads: tuple[int, ...] = (1, 2, 5, 8)
    reductions: tuple[int, ...] = (8, 4, 2, 1)
    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4)
    linear: bool = False
    """Linear spatial-reduction attention: keys and values pooled to 7x7, and a ReLU in the feed-forward network."""

    def __post_init__(self) -> None:
        check_spec(self)


ARCHS = {
    "b0": Arch(depths=(2, 2, 2, 2), dims=(32, 64, 160, 256)),
    "b1": Arch(depths=(2, 2, 2, 2)),
    "b2": Arch(depths=(3, 4, 6, 3)),
    "b2_li": Arch(depths=(3, 4, 6, 3), linear=True),
    "b3": Arch(depths=(3, 4, 18, 3)),
    "b4": Arch(depths=(3, 8, 27, 3)),
    "b5": Arch(depths=(3, 6, 40, 3), mlp_ratios=(4, 4, 4, 4)),
}


class PoolReduction(nn.Module):
    """Keys and values on a fixed grid, for linear attention: (B, H, W, C) -> (B, 7, 7, C) (section 3.1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = ChannelsLastConv2d(dim, dim, kernel_size=1)
        self.norm = LayerNorm(dim, eps=1e-5)  # PyTorch's default epsilon, as official

    def forward(self, grid: Tensor) -> Tensor:
        return F.gelu(self.norm(self.conv(pooled_to(grid, 7))))

    def cells(self, height: int, width: int) -> looking.Lattice:
        """Where the cells of the result are in a grid of these sides."""
        return looking.Lattice((7, 7), (height / 7, width / 7), (height / 14, width / 14))


@final
@BACKBONES.register_module()
class PVTv2(StagedBackbone):
    """PVTv2 as an encoder of four levels; the arguments are those of ``StagedBackbone`` (the dense recipes take the
    default drop path)."""

    archs = ARCHS
    spec_type = Arch
    default_arch = "b2"

    def make_stage(self, in_channels: int, index: int, drop_paths: list[float]) -> nn.Module:
        arch: Arch = self.arch
        dim, ratio = arch.dims[index], arch.reductions[index]

        def reduction() -> nn.Module | None:
            if arch.linear:
                return PoolReduction(dim)
            return ConvReduction(dim, ratio) if ratio > 1 else None

        return OverlapStage(
            in_channels,
            dim,
            arch.num_heads[index],
            arch.mlp_ratios[index],
            first=index == 0,
            reduction=reduction,
            drop_paths=drop_paths,
            relu=arch.linear,
        )

    def init_parameters(self) -> None:
        init_linears_and_norms(self)
        init_convs_fan_out(self)
