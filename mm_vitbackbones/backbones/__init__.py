"""The families: one file each. They import torch and MMEngine only."""

from mm_vitbackbones.backbones.base import Backbone
from mm_vitbackbones.backbones.cait import CaiT
from mm_vitbackbones.backbones.coat import CoaT
from mm_vitbackbones.backbones.dinov2 import DINOv2
from mm_vitbackbones.backbones.dinov3 import DINOv3
from mm_vitbackbones.backbones.mit import MiT
from mm_vitbackbones.backbones.mvit_v2 import MViTv2
from mm_vitbackbones.backbones.pit import PiT
from mm_vitbackbones.backbones.pvt import PVT
from mm_vitbackbones.backbones.pvt_v2 import PVTv2
from mm_vitbackbones.backbones.swin import Swin
from mm_vitbackbones.backbones.vit import ViT
from mm_vitbackbones.backbones.xcit import XCiT

__all__ = [
    "PVT",
    "Backbone",
    "CaiT",
    "CoaT",
    "DINOv2",
    "DINOv3",
    "MViTv2",
    "MiT",
    "PVTv2",
    "PiT",
    "Swin",
    "ViT",
    "XCiT",
]
