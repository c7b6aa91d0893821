"""What the heads of ViTDet's detectors (Li et al. 2022) have and MMDetection lacks: a norm of convolutions."""

from __future__ import annotations

from torch import Tensor, nn

from mm_vitbackbones.ops import norm
from mm_vitbackbones.registry import MODELS


@MODELS.register_module("LN2d")
class LayerNorm2d(nn.LayerNorm):
    """A layer norm over the channels of each place of maps (B, C, H, W), in fp32 under autocast. In a head's config:
    ``norm_cfg=dict(type="mm_vitbackbones.LN2d", eps=1e-6)``."""

    def forward(self, input: Tensor) -> Tensor:
        grid = norm.layer_norm(input.permute(0, 2, 3, 1), self.weight, self.bias, self.eps)
        return grid.permute(0, 3, 1, 2)
