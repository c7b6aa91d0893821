"""What two or more families use: plain ``nn.Module`` parts over grids (B, H, W, C) that know nothing of MMEngine."""

from mm_vitbackbones.layers.attention import (
    ConvReduction,
    RelativeAttention,
    RotaryAttention,
    SelfAttention,
    SpatialReductionAttention,
)
from mm_vitbackbones.layers.block import Block, Branch, LayerScale, Recomputable, ResidualBlock, compile_blocks
from mm_vitbackbones.layers.conv import ChannelsLastConv2d, Upsample2x
from mm_vitbackbones.layers.drop_path import DropPath, drop_path_rates
from mm_vitbackbones.layers.feed_forward import FeedForward, GatedFeedForward, MixFeedForward
from mm_vitbackbones.layers.initialise import init_convs_fan_out, init_linears_and_norms
from mm_vitbackbones.layers.norm import LayerNorm, set_norm_eps
from mm_vitbackbones.layers.overlap_stage import OverlapStage
from mm_vitbackbones.layers.patch_embed import PatchEmbed, pad_to_multiple
from mm_vitbackbones.layers.position import BICUBIC, LearnedPosition
from mm_vitbackbones.layers.pyramid import PYRAMIDS, Pyramid, SimplePyramid

__all__ = [
    "BICUBIC",
    "PYRAMIDS",
    "Block",
    "Branch",
    "ChannelsLastConv2d",
    "ConvReduction",
    "DropPath",
    "FeedForward",
    "GatedFeedForward",
    "LayerNorm",
    "LayerScale",
    "LearnedPosition",
    "MixFeedForward",
    "OverlapStage",
    "PatchEmbed",
    "Pyramid",
    "Recomputable",
    "RelativeAttention",
    "ResidualBlock",
    "RotaryAttention",
    "SelfAttention",
    "SimplePyramid",
    "SpatialReductionAttention",
    "Upsample2x",
    "compile_blocks",
    "drop_path_rates",
    "init_convs_fan_out",
    "init_linears_and_norms",
    "pad_to_multiple",
    "set_norm_eps",
]
