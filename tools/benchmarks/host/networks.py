"""The networks of the GPU benchmark with their published depths and few channels, so that what computes takes no time.

Per network: ours, and the other implementations that are the fastest on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from mm_vitbackbones.backbones import PVT, CaiT, CoaT, DINOv2, DINOv3, MiT, MViTv2, PiT, PVTv2, Swin, ViT, XCiT

from ..columnar import PATCH, TAPS, TimmTaps
from ..contenders import (
    ALL_STAGES,
    DEPTHS_OF_B2,
    Intermediates,
    Levels,
    Logits,
    Whole,
    as_classifier,
    timm_coat,
    timm_for_size,
    timm_levels,
)
from ..gpu.contenders import OURS, of_mmdet, of_mmseg, timm_swin, with_fused_attention, with_sdpa

Build = Callable[[], nn.Module]

DEPTHS = [*DEPTHS_OF_B2]
WIDTHS = [8, 16, 40, 64]
"""Of the pyramids with 1, 2, 5 and 8 heads."""
STAGED: dict[str, Any] = dict(depths=DEPTHS_OF_B2, dims=tuple(WIDTHS))
COLUMN, HEADS = 48, 6
TIMM_COLUMN: dict[str, Any] = dict(embed_dim=COLUMN, num_heads=HEADS, num_classes=0, dynamic_img_size=True)
COLUMN_BY_TRANSFORMERS: dict[str, Any] = dict(
    hidden_size=COLUMN, num_hidden_layers=12, num_attention_heads=HEADS, patch_size=PATCH
)
COAT = 64
SWIN = 24
PIT = 16
MVIT = 24
CLASSES, HEAD = 10, 32
"""Of the segmentors: classes, and channels of the head."""


def _pvt_v2_of_transformers() -> nn.Module:
    from transformers import PvtV2Backbone, PvtV2Config

    config = PvtV2Config(depths=DEPTHS, hidden_sizes=WIDTHS, drop_path_rate=0.1, out_features=ALL_STAGES)
    return Levels(with_sdpa(PvtV2Backbone, config), "feature_maps")


def _segformer_config(depths: list[int]) -> Any:
    from transformers import SegformerConfig

    return SegformerConfig(
        depths=depths, hidden_sizes=WIDTHS, drop_path_rate=0.1, decoder_hidden_size=HEAD, num_labels=CLASSES
    )


def _mit_of_transformers() -> nn.Module:
    from transformers import SegformerModel

    return Levels(with_sdpa(SegformerModel, _segformer_config(DEPTHS)), "hidden_states", output_hidden_states=True)


def _segformer_of_transformers(depths: list[int]) -> nn.Module:
    from transformers import SegformerForSemanticSegmentation

    return Logits(with_sdpa(SegformerForSemanticSegmentation, _segformer_config(depths)))


def _mit_of_mmseg(depths: list[int]) -> nn.Module:
    return of_mmseg("MixVisionTransformer", embed_dims=8, num_layers=depths, num_heads=[1, 2, 5, 8], drop_path_rate=0.1)


def _segformer(depths: list[int]) -> nn.Module:
    from mm_vitbackbones.heads.segformer import SegFormerHead

    encoder = MiT(arch=dict(depths=tuple(depths), dims=tuple(WIDTHS)))
    return Whole(encoder, SegFormerHead(tuple(WIDTHS), HEAD, num_classes=CLASSES))


def _segformer_of_mmseg(depths: list[int]) -> nn.Module:
    encoder = _mit_of_mmseg(depths)
    from mmseg.models.decode_heads import SegformerHead

    sizes = dict(in_channels=WIDTHS, in_index=[0, 1, 2, 3], channels=HEAD, num_classes=CLASSES)
    return Whole(encoder, SegformerHead(**sizes, norm_cfg=dict(type="BN")))


def _segformers(depths: list[int]) -> dict[str, Build]:
    return {
        OURS: lambda: _segformer(depths),
        "mmseg": lambda: _segformer_of_mmseg(depths),
        "transformers": lambda: _segformer_of_transformers(depths),
    }


def _swin_of_transformers() -> nn.Module:
    from transformers import SwinBackbone, SwinConfig

    config = SwinConfig(embed_dim=SWIN, drop_path_rate=0.2, out_features=ALL_STAGES)
    return Levels(with_sdpa(SwinBackbone, config), "feature_maps")


def _timm_taps(name: str, normed: bool, **options: Any) -> nn.Module:
    import timm

    return TimmTaps(timm.create_model(name, **TIMM_COLUMN, **options), normed)


def _dinov2_of_transformers() -> nn.Module:
    from transformers import Dinov2Backbone, Dinov2Config

    features = [f"stage{tap + 1}" for tap in TAPS]
    config = Dinov2Config(**COLUMN_BY_TRANSFORMERS, image_size=518, layerscale_value=1e-5, out_features=features)
    return Levels(with_sdpa(Dinov2Backbone, config), "feature_maps")


def _timm_intermediates(name: str, taps: list[int], **options: Any) -> nn.Module:
    import timm

    return Intermediates(timm.create_model(name, num_classes=0, **options), taps)


def _mvit() -> nn.Module:
    return as_classifier(MViTv2(arch=dict(depths=(1, 2, 5, 2), dims=tuple(MVIT * 2**i for i in range(4)))))


def _mvit_of_timm(size: tuple[int, int]) -> nn.Module:
    from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg

    config = MultiScaleVitCfg(depths=(1, 2, 5, 2), embed_dim=MVIT)
    network = MultiScaleVit(config, img_size=max(size), drop_path_rate=0.2, num_classes=0)
    return Intermediates(network, [0, 1, 2, 3])


def _coat(name: str, **options: Any) -> dict[str, Build]:
    dims = (COAT,) * 4
    return {
        OURS: lambda: CoaT(arch=dict(dims=dims, **options)),
        "timm": lambda: timm_coat(name, embed_dims=[*dims]),
    }


NETWORKS: dict[str, dict[str, Build]] = {
    "PVT-S": {
        OURS: lambda: PVT(arch=STAGED),
        "mmdet": lambda: of_mmdet("PyramidVisionTransformer", embed_dims=8, num_layers=DEPTHS, drop_path_rate=0.1),
    },
    "PVTv2-B2": {
        OURS: lambda: PVTv2(arch=STAGED),
        "timm": lambda: timm_levels("pvt_v2_b2", 0.1, embed_dims=WIDTHS),
        "transformers": _pvt_v2_of_transformers,
    },
    "MiT-B2": {
        OURS: lambda: MiT(arch=STAGED),
        "mmseg": lambda: _mit_of_mmseg(DEPTHS),
        "transformers": _mit_of_transformers,
    },
    "SegFormer-B0": _segformers([2, 2, 2, 2]),
    "SegFormer-B2": _segformers(DEPTHS),
    "Swin-T": {
        OURS: lambda: Swin(arch=dict(depths=(2, 2, 6, 2), dims=(24, 48, 96, 192))),
        "timm, fused": lambda: with_fused_attention(lambda: timm_swin(0.2, embed_dim=SWIN)),
        "transformers": _swin_of_transformers,
    },
    "CoaT-Lite-S": _coat("coat_lite_small", depths=DEPTHS_OF_B2),
    "CoaT-Mini": _coat("coat_mini", mlp_ratios=(4, 4, 4, 4), parallel_depth=6),
    "PiT-S": {
        OURS: lambda: PiT(arch=dict(dims=(48, 96, 192), num_heads=(3, 6, 12)), stem="published", out_indices=(1, 2, 3)),
        "timm": lambda: timm_for_size(lambda size: timm_levels("pit_s_224", 0.1, img_size=size, base_dims=[PIT] * 3)),
    },
    "ViT-S": {
        OURS: lambda: ViT(arch=dict(dim=COLUMN, num_heads=HEADS), pyramid=None),
        "timm": lambda: _timm_taps("vit_small_patch16_224", False, drop_path_rate=0.1),
    },
    "DINOv2-S": {
        OURS: lambda: DINOv2(arch=dict(dim=COLUMN, num_heads=HEADS), pyramid=None, patch_size=PATCH),
        "timm": lambda: _timm_taps("vit_small_patch14_dinov2", True, patch_size=PATCH),
        "transformers": _dinov2_of_transformers,
    },
    "DINOv3-S": {
        OURS: lambda: DINOv3(arch=dict(dim=COLUMN, num_heads=HEADS), pyramid=None),
        "timm": lambda: _timm_taps("vit_small_patch16_dinov3", True),
    },
    "XCiT-S12": {
        OURS: lambda: XCiT(arch=dict(dim=COAT, num_heads=8), pyramid=None),
        "timm": lambda: _timm_intermediates("xcit_small_12_p16_224", [3, 5, 7, 11], embed_dim=COAT),
    },
    "CaiT-S24": {
        OURS: lambda: CaiT(arch=dict(dim=COAT, num_heads=8), pyramid=None),
        "timm": lambda: timm_for_size(
            lambda size: _timm_intermediates("cait_s24_224", [5, 11, 17, 23], img_size=size, embed_dim=COAT)
        ),
    },
    "MViTv2-T": {OURS: _mvit, "timm": lambda: timm_for_size(_mvit_of_timm)},
}
"""Per network: ours first."""
