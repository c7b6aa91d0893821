"""ViT, DeiT, DINOv2 and DINOv3, ours and of other implementations: the grids of four taps, at the stride of a patch.

Patches have 16 pixels (in DINOv2, too), which fill all images that are measured: all implementations then compute on
the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mm_vitbackbones.backbones import Backbone, DINOv2, DINOv3, ViT

from .contenders import Levels, declare_torchvision_operators

PATCH = 16
TAPS = (2, 5, 8, 11)
"""The ends of the quarters of twelve blocks: the default of our networks."""
FEATURES = [f"stage{tap + 1}" for tap in TAPS]
"""By transformers' names."""
SMALL: dict[str, Any] = dict(
    hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536, patch_size=PATCH
)
"""Sizes by transformers' names."""


class TimmTaps(nn.Module):
    """timm's network as a function from an image to the maps of its taps."""

    def __init__(self, network: Any, normed: bool) -> None:
        super().__init__()
        self.network, self.normed = network, normed

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        options = dict(norm=self.normed, stop_early=True, intermediates_only=True)
        return tuple(self.network.forward_intermediates(image, [*TAPS], **options))


class HiddenTaps(nn.Module):
    """transformers' network without levels of its own as a function from an image to the maps of its taps.

    Args:
        others: class tokens, which precede the patches.
    """

    def __init__(self, network: Any, others: int) -> None:
        super().__init__()
        self.network, self.others = network, others

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        found = self.network(image, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states
        rows = image.shape[2] // PATCH
        patches = (found[tap + 1][:, self.others :] for tap in TAPS)
        return tuple(x.unflatten(1, (rows, -1)).permute(0, 3, 1, 2).contiguous() for x in patches)


def _ours(family: type[Backbone], arch: str, **options: Any) -> Callable[..., nn.Module]:
    return lambda **more: family(**{"arch": arch, "pyramid": None, **options, **more})


def _timm(name: str, normed: bool, rate: float, **options: Any) -> nn.Module:
    declare_torchvision_operators()
    import timm

    options = dict(dynamic_img_size=True, num_classes=0, drop_path_rate=rate) | options
    return TimmTaps(timm.create_model(name, **options), normed)


def _with_sdpa(config: Any) -> Any:
    config._attn_implementation = "sdpa"
    return config


def _transformers_vit(distilled: bool) -> nn.Module:
    declare_torchvision_operators()
    from transformers import DeiTConfig, DeiTModel, ViTConfig, ViTModel

    if distilled:
        return HiddenTaps(DeiTModel(_with_sdpa(DeiTConfig(**SMALL)), add_pooling_layer=False), others=2)
    return HiddenTaps(ViTModel(_with_sdpa(ViTConfig(**SMALL)), add_pooling_layer=False), others=1)


def _transformers_dinov2() -> nn.Module:
    declare_torchvision_operators()
    from transformers import Dinov2Backbone, Dinov2Config

    sizes = {name: value for name, value in SMALL.items() if name != "intermediate_size"}
    config = Dinov2Config(**sizes, image_size=518, layerscale_value=1e-5, out_features=FEATURES)
    return Levels(Dinov2Backbone(_with_sdpa(config)), "feature_maps")


def _transformers_dinov3() -> nn.Module:
    declare_torchvision_operators()
    from transformers import DINOv3ViTBackbone, DINOv3ViTConfig

    # Without the random scale of positions in training, which no other implementation here has.
    options = dict(num_register_tokens=4, layerscale_value=1e-5, pos_embed_rescale=None, out_features=FEATURES)
    return Levels(DINOv3ViTBackbone(_with_sdpa(DINOv3ViTConfig(**SMALL, **options))), "feature_maps")


@dataclass(frozen=True)
class Network:
    """One network in its implementations."""

    title: str
    ours: Callable[..., nn.Module]
    """Takes further arguments of the backbone."""
    timm: Callable[[], nn.Module]
    transformers: Callable[[], nn.Module]


NETWORKS = {
    "vit_s": Network(
        "ViT-S (DeiT-S without distillation)",
        _ours(ViT, "small"),
        lambda: _timm("vit_small_patch16_224", False, 0.1),
        lambda: _transformers_vit(distilled=False),
    ),
    "deit_s_distilled": Network(
        "DeiT-S, distilled",
        _ours(ViT, "small_distilled"),
        lambda: _timm("deit_small_distilled_patch16_224", False, 0.1),
        lambda: _transformers_vit(distilled=True),
    ),
    "dinov2_s": Network(
        "DINOv2-S, patches of 16 pixels",
        _ours(DINOv2, "small", patch_size=PATCH),
        lambda: _timm("vit_small_patch14_dinov2", True, 0.0, patch_size=PATCH),
        _transformers_dinov2,
    ),
    "dinov3_s": Network(
        "DINOv3-S",
        _ours(DINOv3, "small"),
        lambda: _timm("vit_small_patch16_dinov3", True, 0.0),
        _transformers_dinov3,
    ),
}
"""transformers' ViT and DeiT drop no paths in training, and timm's do as ours."""
