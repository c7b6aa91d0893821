"""An initialisation for training a detector or segmentor from random weights, in minutes and on little data."""

from __future__ import annotations

import math

from torch import nn

from mm_vitbackbones.layers import FeedForward, MixFeedForward, SpatialReductionAttention, init_convs_fan_out
from mm_vitbackbones.registry import WEIGHT_INITIALIZERS


@WEIGHT_INITIALIZERS.register_module()
class FromScratch:
    """Large weights in feed-forward networks and convolutions (He et al. 2015, by fan-out), small ones in attention.

    The official rule of most families, a standard deviation of 0.02 everywhere, suits hundreds of epochs of
    classification: at first only the patch embeddings affect the result. In a config:
    ``init_cfg=dict(type='mm_vitbackbones.FromScratch')``.
    """

    def __call__(self, module: nn.Module) -> None:
        init_convs_fan_out(module)
        for part in module.modules():
            if isinstance(part, (FeedForward, MixFeedForward)):
                for linear in (part.fc1, part.fc2):
                    nn.init.normal_(linear.weight, std=math.sqrt(2 / linear.out_features))
            elif isinstance(part, SpatialReductionAttention):
                # As if queries, keys and values were one linear map, by Glorot's rule; `proj` stays at 0.02.
                for linear in (part.q, part.kv):
                    nn.init.normal_(linear.weight, std=math.sqrt(2 / (4 * linear.in_features)))
