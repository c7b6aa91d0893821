"""What two or more families use: plain ``nn.Module`` parts over grids (B, H, W, C) that know nothing of MMEngine."""

from mm_vitbackbones.layers.attention import ConvReduction, SpatialReductionAttention, attend
from mm_vitbackbones.layers.block import Block
from mm_vitbackbones.layers.conv import ChannelsLastConv2d
from mm_vitbackbones.layers.feed_forward import FeedForward, MixFeedForward
from mm_vitbackbones.layers.initialise import init_convs_fan_out, init_linears_and_norms
from mm_vitbackbones.layers.norm import LayerNorm, set_norm_eps
from mm_vitbackbones.layers.overlap_stage import OverlapStage
from mm_vitbackbones.layers.patch_embed import PatchEmbed
from mm_vitbackbones.layers.position import LearnedPosition
from mm_vitbackbones.layers.residual import DropPath, add_residual, check_drop_path_rate, drop_path_rates

__all__ = [
    "Block",
    "ChannelsLastConv2d",
    "ConvReduction",
    "DropPath",
    "FeedForward",
    "LayerNorm",
    "LearnedPosition",
    "MixFeedForward",
    "OverlapStage",
    "PatchEmbed",
    "SpatialReductionAttention",
    "add_residual",
    "attend",
    "check_drop_path_rate",
    "drop_path_rates",
    "init_convs_fan_out",
    "init_linears_and_norms",
    "set_norm_eps",
]
