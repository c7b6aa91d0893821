"""Pooling in Place of Attention.

Nobody, a toy of the tests, arXiv:2100.00001. Official code and weights: example.org/pool (Apache-2.0).

    level  stride  what happens
      0       4    7x7 overlapping patches, LayerNorm, blocks, LayerNorm
     1-3   8-32    3x3 overlapping patches, LayerNorm, blocks, LayerNorm

A block's tokens meet in the mean of 3x3 neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.backbones.checks import check_spec
from mm_vitbackbones.backbones.staged import StagedBackbone
from mm_vitbackbones.layers import Block, FeedForward, LayerNorm, PatchEmbed, Recomputable, init_linears_and_norms
from mm_vitbackbones.ops import linear
from mm_vitbackbones.registry import BACKBONES


@dataclass(frozen=True)
class Arch:
    """Table 1 of the paper."""

    depths: tuple[int, ...]
    dims: tuple[int, ...]

    def __post_init__(self) -> None:
        check_spec(self)


ARCHS = {"tiny": Arch(depths=(1, 1, 2, 1), dims=(16, 32, 48, 64))}


class Pooling(nn.Module):
    """mix(mean of 3x3 neighbours - x) over grids (B, H, W, C) (equation 1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mix = nn.Linear(dim, dim)

    def forward(self, grid: Tensor) -> Tensor:
        x = grid.permute(0, 3, 1, 2)
        mean = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return linear.linear((mean - x).permute(0, 2, 3, 1), self.mix)


class Stage(Recomputable):
    """Patch embedding, blocks, norm: (B, H, W, Cin) -> (B, ceil(H/stride), ceil(W/stride), C)."""

    def __init__(self, in_channels: int, dim: int, first: bool, drop_paths: list[float]) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(in_channels, dim, *((7, 4) if first else (3, 2)))
        self.blocks = nn.Sequential(
            *(Block(dim, Pooling(dim), FeedForward(dim, 4 * dim), norm_eps=1e-6, drop_path=rate) for rate in drop_paths)
        )
        self.norm = LayerNorm(dim, eps=1e-6)

    def forward(self, grid: Tensor) -> Tensor:
        return self.norm(self.blocks(self.recomputed(self.patch_embed, grid)))


@final
@BACKBONES.register_module()
class Pool(StagedBackbone):
    """Pool as an encoder of four levels; the arguments are those of ``StagedBackbone``."""

    archs = ARCHS
    spec_type = Arch
    default_arch = "tiny"

    def make_stage(self, in_channels: int, index: int, drop_paths: list[float]) -> nn.Module:
        return Stage(in_channels, self.arch.dims[index], index == 0, drop_paths)

    def init_parameters(self) -> None:
        init_linears_and_norms(self)
