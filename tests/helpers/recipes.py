"""The configs by their names, the networks that they make, and published values that several test modules need."""

from __future__ import annotations

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope

from helpers.paths import CONFIGS
from mm_vitbackbones import libraries
from mm_vitbackbones.checkpoints import published
from mm_vitbackbones.cli.config import use_local_norms

# config: (backbone type, arch, drop path, weights, images per GPU, parameters of the detector in M)
RETINANET_1X = {
    "retinanet_pvt_t_coco": ("PVT", "tiny", 0.1, "pvt_tiny.pth", 2, 22.96),
    "retinanet_pvt_s_coco": ("PVT", "small", 0.1, "pvt_small.pth", 2, 34.22),
    "retinanet_pvt_m_coco": ("PVT", "medium", 0.0, "pvt_medium.pth", 2, 53.94),
    "retinanet_pvt_l_coco": ("PVT", "large", 0.0, "pvt_large.pth", 2, 71.10),
    "retinanet_pvt_v2_b0_coco": ("PVTv2", "b0", 0.1, "pvt_v2_b0.pth", 2, 12.95),
    "retinanet_pvt_v2_b1_coco": ("PVTv2", "b1", 0.1, "pvt_v2_b1.pth", 2, 23.75),
    "retinanet_pvt_v2_b2_li_coco": ("PVTv2", "b2_li", 0.1, "pvt_v2_b2_li.pth", 2, 32.29),
    "retinanet_pvt_v2_b2_coco": ("PVTv2", "b2", 0.1, "pvt_v2_b2.pth", 2, 35.10),
    "retinanet_pvt_v2_b3_coco": ("PVTv2", "b3", 0.1, "pvt_v2_b3.pth", 2, 54.98),
    "retinanet_pvt_v2_b4_coco": ("PVTv2", "b4", 0.1, "pvt_v2_b4.pth", 1, 72.29),
    "retinanet_pvt_v2_b5_coco": ("PVTv2", "b5", 0.1, "pvt_v2_b5.pth", 1, 91.69),
}


def weights_of(backbone: ConfigDict) -> str:
    """The name of the published file that a backbone's config begins from."""
    assert backbone.init_cfg.type == "Pretrained"
    known = published.files_of(backbone.type.partition(".")[2], backbone.arch)
    return known[backbone.init_cfg.checkpoint].file_name


def load(name: str) -> Config:
    return Config.fromfile(CONFIGS / f"{name}.py")


def build(cfg: Config, device: str = "meta") -> torch.nn.Module:
    """The whole network of a config, its ``init_cfg`` included; without memory for its weights by default."""
    libraries.load(cfg.default_scope)
    use_local_norms(cfg, distributed=False)
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device(device):
        return MODELS.build(cfg.model)
