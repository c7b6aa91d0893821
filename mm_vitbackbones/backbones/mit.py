"""SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers (MiT, its encoder).

Xie et al., NeurIPS 2021, arXiv:2105.15203. Written from the paper: the official code (github.com/NVlabs/SegFormer) and
the weights released with it are under NVIDIA's non-commercial licence, which holds for them in any layout.

    level  stride  what happens
      0       4    7x7 overlapping patches, LayerNorm, blocks with keys and values at 1/8 of the grid, LayerNorm
      1       8    3x3 overlapping patches, LayerNorm, blocks with keys and values at 1/4, LayerNorm
      2      16    3x3 overlapping patches, LayerNorm, blocks with keys and values at 1/2, LayerNorm
      3      32    3x3 overlapping patches, LayerNorm, blocks with full attention, LayerNorm

The zero padding of the depthwise convolution in each feed-forward network (Mix-FFN) replaces position embeddings. The
normalised grid is what a level returns and what the next stage takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import nn

from mm_vitbackbones.backbones.checks import check_spec
from mm_vitbackbones.backbones.staged import StagedBackbone
from mm_vitbackbones.layers import ConvReduction, OverlapStage, init_convs_fan_out, init_linears_and_norms
from mm_vitbackbones.registry import BACKBONES


@dataclass(frozen=True)
class Arch:
    """The table of variants in the paper's appendix (which prints feed-forward ratios of 8 in stages 0 and 1 for b0 to
    b4; the released weights have 4 throughout, as here)."""

    depths: tuple[int, ...]
    dims: tuple[int, ...] = (64, 128, 320, 512)
    num_heads: tuple[int, ...] = (1, 2, 5, 8)
    reductions: tuple[int, ...] = (8, 4, 2, 1)
    mlp_ratios: tuple[int, ...] = (4, 4, 4, 4)

    def __post_init__(self) -> None:
        check_spec(self)


ARCHS = {
    "b0": Arch(depths=(2, 2, 2, 2), dims=(32, 64, 160, 256)),
    "b1": Arch(depths=(2, 2, 2, 2)),
    "b2": Arch(depths=(3, 4, 6, 3)),
    "b3": Arch(depths=(3, 4, 18, 3)),
    "b4": Arch(depths=(3, 8, 27, 3)),
    "b5": Arch(depths=(3, 6, 40, 3)),
}


@final
@BACKBONES.register_module()
class MiT(StagedBackbone):
    """MiT as an encoder of four levels; the arguments are those of ``StagedBackbone`` (the published recipes take the
    default drop path)."""

    archs = ARCHS
    spec_type = Arch
    default_arch = "b2"

    def make_stage(self, in_channels: int, index: int, drop_paths: list[float]) -> nn.Module:
        arch: Arch = self.arch
        dim, ratio = arch.dims[index], arch.reductions[index]
        return OverlapStage(
            in_channels,
            dim,
            arch.num_heads[index],
            arch.mlp_ratios[index],
            first=index == 0,
            reduction=lambda: ConvReduction(dim, ratio) if ratio > 1 else None,
            drop_paths=drop_paths,
        )

    def init_parameters(self) -> None:
        init_linears_and_norms(self)
        init_convs_fan_out(self)
