"""The configs by their names, the networks that they make, and published values that several test modules need."""

from __future__ import annotations

import copy
import functools

import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

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

# config: (backbone type, arch, drop path, weights, frozen, parameters in M, published mIoU, with --tta)
COLUMNS = {
    "upernet_deit_b_ade20k": ("ViT", "base", 0.1, "deit_base_patch16_224-b5f2ef4d.pth", False, 143.54, 45.46, 47.16),
    "upernet_mae_b_ade20k": ("ViT", "base", 0.1, "mae_pretrain_vit_base.pth", False, 162.65, 48.13, 48.7),
    "upernet_dinov2_b_ade20k": ("DINOv2", "base", 0.1, "dinov2_vitb14_pretrain.pth", True, 127.80, None, None),
    "dpt_vit_l_ade20k": ("ViT", "large_384", 0.0, "jx_vit_large_p16_384-b3be5167.pth", False, 342.15, None, None),
    "dpt_dinov2_b_ade20k": ("DINOv2", "base", 0.0, "dinov2_vitb14_pretrain.pth", True, 110.49, None, None),
    "dpt_dinov3_b_ade20k": ("DINOv3", "base", 0.0, "dinov3-vitb16-pretrain-lvd1689m", True, 109.57, None, None),
    "linear_dinov2_s_ade20k": ("DINOv2", "small", 0.0, "dinov2_vits14_pretrain.pth", True, 22.11, 44.3, None),
    "linear_dinov2_b_ade20k": ("DINOv2", "base", 0.0, "dinov2_vitb14_pretrain.pth", True, 86.70, 47.3, None),
    "linear_dinov3_s_ade20k": ("DINOv3", "small", 0.0, "dinov3-vits16-pretrain-lvd1689m", True, 21.65, 47.0, None),
    "linear_dinov3_b_ade20k": ("DINOv3", "base", 0.0, "dinov3-vitb16-pretrain-lvd1689m", True, 85.78, 51.8, None),
    "upernet_cait_xxs24_ade20k": ("CaiT", "xxs24", 0.05, "XXS24_224.pth", False, 39.41, None, None),
    "upernet_cait_s24_ade20k": ("CaiT", "s24", 0.1, "S24_224.pth", False, 74.86, None, None),
}
"""Segmentors on a ViT, DINOv2, DINOv3 or CaiT."""
# config: (backbone type, arch, drop path, weights, M of parameters, published box AP and mask AP)
COLUMNAR: dict[str, tuple[str, str, float, str, float, tuple[float, ...]]] = {
    "mask_rcnn_vitdet_b_coco": ("ViT", "base", 0.1, "mae_pretrain_vit_base.pth", 110.90, (51.6, 45.9)),
    "mask_rcnn_vitdet_l_coco": ("ViT", "large", 0.4, "mae_pretrain_vit_large.pth", 330.68, (55.5, 49.2)),
    "cascade_mask_rcnn_vitdet_b_coco": ("ViT", "base", 0.1, "mae_pretrain_vit_base.pth", 146.45, (54.0, 46.7)),
    "cascade_mask_rcnn_vitdet_l_coco": ("ViT", "large", 0.4, "mae_pretrain_vit_large.pth", 366.24, (57.6, 50.0)),
    "retinanet_dinov2_s_frozen_coco": ("DINOv2", "small", 0.0, "dinov2_vits14_pretrain.pth", 33.98, ()),
    "retinanet_dinov2_b_frozen_coco": ("DINOv2", "base", 0.0, "dinov2_vitb14_pretrain.pth", 99.63, ()),
    "mask_rcnn_dinov3_s_frozen_coco": ("DINOv3", "small", 0.0, "dinov3-vits16-pretrain-lvd1689m", 45.06, ()),
    "mask_rcnn_dinov3_b_frozen_coco": ("DINOv3", "base", 0.0, "dinov3-vitb16-pretrain-lvd1689m", 111.39, ()),
    "mask_rcnn_dinov3_s_lora_coco": ("DINOv3", "small", 0.0, "dinov3-vits16-pretrain-lvd1689m", 45.36, ()),
    "mask_rcnn_dinov3_b_lora_coco": ("DINOv3", "base", 0.0, "dinov3-vitb16-pretrain-lvd1689m", 111.98, ()),
    "mask_rcnn_cait_xxs24_coco": ("CaiT", "xxs24", 0.05, "XXS24_224.pth", 33.70, ()),
    "mask_rcnn_cait_s24_coco": ("CaiT", "s24", 0.1, "S24_224.pth", 66.45, ()),
}
"""Detectors on ViT and its successors."""
# config: (arch, drop path, weights, M of parameters, published box AP and mask AP)
MVIT_V2 = {
    "mask_rcnn_mvit_v2_t_3x_coco": ("tiny", 0.2, "MViTv2_T_in1k.pyth", 43.68, (48.3, 43.8)),
    "cascade_mask_rcnn_mvit_v2_t_3x_coco": ("tiny", 0.2, "MViTv2_T_in1k.pyth", 81.14, (52.2, 45.0)),
    "cascade_mask_rcnn_mvit_v2_s_3x_coco": ("small", 0.2, "MViTv2_S_in1k.pyth", 91.83, (53.2, 46.0)),
    "cascade_mask_rcnn_mvit_v2_b_3x_coco": ("base", 0.4, "MViTv2_B_in1k.pyth", 108.44, (54.1, 46.7)),
    "cascade_mask_rcnn_mvit_v2_b_in21k_3x_coco": ("base", 0.4, "MViTv2_B_in21k.pyth", 108.44, (54.9, 47.4)),
}
"""Detectors on MViTv2."""


def weights_of(backbone: ConfigDict) -> str:
    """The name of the published file that a backbone's config begins from."""
    assert backbone.init_cfg.type == "Pretrained"
    known = published.files_of(backbone.type.partition(".")[2], backbone.arch)
    return known[backbone.init_cfg.checkpoint].file_name


def load(name: str) -> Config:
    """A config of ours. A copy takes a twentieth of the time of reading it and its parts."""
    return copy.deepcopy(_read(name))


@functools.cache
def _read(name: str) -> Config:
    return Config.fromfile(CONFIGS / f"{name}.py")


def build(cfg: Config, device: str = "meta") -> torch.nn.Module:
    """The whole network of a config, its ``init_cfg`` included; without memory for its weights by default."""
    libraries.load(cfg.default_scope)
    use_local_norms(cfg, distributed=False)
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device(device):
        return MODELS.build(cfg.model)


def decay_by_parameter(cfg: Config, model: nn.Module) -> dict[str, tuple[type[nn.Module], float]]:
    """The type of module of each parameter that trains, and its weight decay."""
    groups = build_optim_wrapper(model, cfg.optim_wrapper).param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    kinds = {id(p): type(part) for part in model.modules() for p in part.parameters(recurse=False)}
    return {key: (kinds[id(p)], decay[id(p)]) for key, p in model.named_parameters() if p.requires_grad}
