"""Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without Convolutions.

Wang et al., ICCV 2021, arXiv:2102.12122. Official code and weights: github.com/whai362/PVT (Apache-2.0).

    level  stride  what happens
      0       4    4x4 patches, LayerNorm, + position, blocks with keys and values at 1/8 of the grid
      1       8    2x2 patches, LayerNorm, + position, blocks with keys and values at 1/4
      2      16    2x2 patches, LayerNorm, + position, blocks with keys and values at 1/2
      3      32    2x2 patches, LayerNorm, + position, blocks with full attention

The class token, which the classifier puts before the tokens of the last stage, and the final norm are not in the
dense form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, final

from torch import Tensor, nn

from mm_vitbackbones.backbones.checks import Minimum, check_spec
from mm_vitbackbones.backbones.staged import StagedBackbone
from mm_vitbackbones.layers import (
    Block,
    ConvReduction,
    FeedForward,
    LearnedPosition,
    PatchEmbed,
    SpatialReductionAttention,
    init_linears_and_norms,
)
from mm_vitbackbones.registry import BACKBONES


@dataclass(frozen=True)
class Arch:
    """Table 1 of the paper. Tuples have one entry per stage."""

    depths: tuple[int, ...]
    dims: tuple[int, ...] = (64, 128, 320, 512)
    num_heads: tuple[int, ...] = (1, 2, 5, 8)
    reductions: tuple[int, ...] = (8, 4, 2, 1)
    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4)
    pretrain_grid: Annotated[int, Minimum(8)] = 56
    """Side of the first position table: 224 pixels at stride 4. The last one has an eighth of it."""

    def __post_init__(self) -> None:
        check_spec(self)


ARCHS = {
    "tiny": Arch(depths=(2, 2, 2, 2)),
    "small": Arch(depths=(3, 4, 6, 3)),
    "medium": Arch(depths=(3, 4, 18, 3)),
    "large": Arch(depths=(3, 8, 27, 3)),
}


class Stage(nn.Module):
    """Patch embedding, position, blocks: (B, H, W, Cin) -> (B, ceil(H/patch), ceil(W/patch), C)."""

    def __init__(self, in_channels: int, arch: Arch, index: int, drop_paths: list[float]) -> None:
        super().__init__()
        dim, heads, ratio = arch.dims[index], arch.num_heads[index], arch.reductions[index]
        patch, side = (4 if index == 0 else 2), arch.pretrain_grid // 2**index
        self.patch_embed = PatchEmbed(in_channels, dim, kernel_size=patch, stride=patch)
        self.position = LearnedPosition(dim, side, side)
        self.blocks = nn.Sequential(
            *(
                Block(
                    dim,
                    attn=SpatialReductionAttention(dim, heads, ConvReduction(dim, ratio) if ratio > 1 else None),
                    ffn=FeedForward(dim, arch.mlp_ratios[index] * dim),
                    norm_eps=1e-6,
                    drop_path=drop_path,
                )
                for drop_path in drop_paths
            )
        )

    def forward(self, grid: Tensor) -> Tensor:
        return self.blocks(self.position(self.patch_embed(grid)))


@final
@BACKBONES.register_module()
class PVT(StagedBackbone):
    """PVT as an encoder of four levels; the arguments are those of ``StagedBackbone`` (the detection recipes
    have a drop path of 0.1 for tiny and small, 0 for medium and large)."""

    archs = ARCHS
    spec_type = Arch
    default_arch = "small"

    def make_stage(self, in_channels: int, index: int, drop_paths: list[float]) -> Stage:
        return Stage(in_channels, self.arch, index, drop_paths)

    def init_parameters(self) -> None:
        init_linears_and_norms(self)
