"""Our networks and other implementations of the same ones, at random weights: all compute the same function up to
norm epsilons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mm_vitbackbones.backbones import PVT, CaiT, CoaT, DINOv2, DINOv3, MiT, MViTv2, PiT, PVTv2, Swin, ViT, XCiT
from mm_vitbackbones.backbones.mvit_v2 import PoolingAttention

DEPTHS_OF_B2 = (3, 4, 6, 3)


@dataclass(frozen=True)
class Contender:
    """One implementation of one network. ``build`` raises ImportError where its package is not installed."""

    name: str
    build: Callable[[], nn.Module]


def declare_torchvision_operators() -> None:
    """timm imports torchvision for two operators that a backbone never calls. Where torchvision has no compiled part,
    the import works once they are declared."""
    for name in ("nms", "qnms"):
        try:
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError:  # declared already
            return


def mmdet_pvt() -> nn.Module:
    from mmdet.models.backbones import PyramidVisionTransformer

    return PyramidVisionTransformer(num_layers=list(DEPTHS_OF_B2))


def mmdet_pvt_v2() -> nn.Module:
    from mmdet.models.backbones import PyramidVisionTransformerV2

    return PyramidVisionTransformerV2(embed_dims=64, num_layers=list(DEPTHS_OF_B2))


def timm_levels(name: str, drop_path_rate: float, **kwargs: Any) -> nn.Module:
    declare_torchvision_operators()
    import timm

    return timm.create_model(name, features_only=True, drop_path_rate=drop_path_rate, **kwargs)


class Levels(nn.Module):
    """transformers' network as a function from an image to its maps, a field of what it returns."""

    def __init__(self, network: nn.Module, field: str, **options: Any) -> None:
        super().__init__()
        self.network, self.field, self.options = network, field, options

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return getattr(self.network(image, **self.options), self.field)


ALL_STAGES = [f"stage{i}" for i in (1, 2, 3, 4)]
"""By transformers' names."""


def transformers_pvt() -> nn.Module:
    declare_torchvision_operators()
    from transformers import PvtConfig, PvtModel

    network = PvtModel(PvtConfig(depths=[*DEPTHS_OF_B2]))
    return Levels(network, "hidden_states", output_hidden_states=True)


def transformers_pvt_v2() -> nn.Module:
    declare_torchvision_operators()
    from transformers import PvtV2Backbone, PvtV2Config

    sizes = dict(depths=[*DEPTHS_OF_B2], hidden_sizes=[*WIDTHS["b2"]])
    return Levels(PvtV2Backbone(PvtV2Config(**sizes, out_features=ALL_STAGES)), "feature_maps")


def mmseg_mit() -> nn.Module:
    declare_torchvision_operators()  # mmseg imports timm where it finds it
    from mmseg.models.backbones import MixVisionTransformer

    return MixVisionTransformer(embed_dims=64, num_layers=list(DEPTHS_OF_B2), num_heads=[1, 2, 5, 8])


def transformers_mit() -> nn.Module:
    declare_torchvision_operators()
    from transformers import SegformerConfig, SegformerModel

    config = SegformerConfig(depths=list(DEPTHS_OF_B2), hidden_sizes=[*WIDTHS["b2"]])
    return Levels(SegformerModel(config), "hidden_states", output_hidden_states=True)


CLASSES = 150
"""Of ADE20K."""
WIDTHS = {"b0": (32, 64, 160, 256), "b2": (64, 128, 320, 512)}
"""Channels of MiT's levels."""


def our_head(arch: str, channels: int) -> nn.Module:
    declare_torchvision_operators()  # mmseg imports timm where it finds it
    from mm_vitbackbones.heads.segformer import SegFormerHead

    return SegFormerHead(WIDTHS[arch], channels, num_classes=CLASSES)


def mmseg_head(arch: str, channels: int) -> nn.Module:
    declare_torchvision_operators()
    from mmseg.models.decode_heads import SegformerHead

    kwargs = dict(in_index=[0, 1, 2, 3], channels=channels, num_classes=CLASSES, norm_cfg=dict(type="BN"))
    return SegformerHead(in_channels=[*WIDTHS[arch]], **kwargs)


def transformers_segformer(arch: str, channels: int) -> Any:
    declare_torchvision_operators()
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        depths=[*MiT.archs[arch].depths],
        hidden_sizes=[*WIDTHS[arch]],
        decoder_hidden_size=channels,
        num_labels=CLASSES,
    )
    return SegformerForSemanticSegmentation(config)


class Logits(nn.Module):
    """transformers' network as a function from an image to its logits (in a tuple, as all here return)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor]:
        return (self.network(image).logits,)


class Whole(nn.Module):
    """An encoder and a decode head: an image to its logits."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, image: Tensor) -> tuple[Tensor]:
        return (self.head(self.encoder(image)),)


class HeadAlone(nn.Module):
    """A decode head on random maps such as an encoder makes of an image of the given size."""

    def __init__(self, head: nn.Module, arch: str) -> None:
        super().__init__()
        self.head, self.arch = head, arch
        self.maps: dict[tuple[int, ...], list[Tensor]] = {}

    def forward(self, image: Tensor) -> tuple[Tensor]:
        size = tuple(image.shape[2:])
        if size not in self.maps:
            sides = [[-(-side // stride) for side in size] for stride in (4, 8, 16, 32)]
            pairs = zip(WIDTHS[self.arch], sides, strict=True)
            self.maps[size] = [torch.randn(1, width, *side, requires_grad=True) for width, side in pairs]
        return (self.head(self.maps[size]),)


def segformers(arch: str, channels: int) -> tuple[Contender, ...]:
    depths, heads = list(MiT.archs[arch].depths), list(MiT.archs[arch].num_heads)

    def mmseg() -> nn.Module:
        head = mmseg_head(arch, channels)  # which declares what mmseg's import of timm needs
        from mmseg.models.backbones import MixVisionTransformer

        encoder = MixVisionTransformer(embed_dims=WIDTHS[arch][0], num_layers=depths, num_heads=heads)
        return Whole(encoder, head)

    return (
        Contender("ours", lambda: Whole(MiT(arch=arch), our_head(arch, channels))),
        Contender("mmseg", mmseg),
        Contender("transformers", lambda: Logits(transformers_segformer(arch, channels))),
    )


def segformer_heads(arch: str, channels: int) -> tuple[Contender, ...]:
    return (
        Contender("ours", lambda: HeadAlone(our_head(arch, channels), arch)),
        Contender("mmseg", lambda: HeadAlone(mmseg_head(arch, channels), arch)),
        Contender("transformers", lambda: HeadAlone(transformers_segformer(arch, channels).decode_head, arch)),
    )


def mmdet_swin() -> nn.Module:
    from mmdet.models.backbones import SwinTransformer

    return SwinTransformer(drop_path_rate=0.2)


def mmseg_swin() -> nn.Module:
    declare_torchvision_operators()
    from mmseg.models.backbones import SwinTransformer

    return SwinTransformer(drop_path_rate=0.2)


def transformers_swin() -> nn.Module:
    declare_torchvision_operators()
    from transformers import SwinBackbone, SwinConfig

    return Levels(SwinBackbone(SwinConfig(drop_path_rate=0.2, out_features=ALL_STAGES)), "feature_maps")


def timm_coat(name: str, **arguments: Any) -> nn.Module:
    """timm's dense form, which is built for one size of image, changed to take any sides divisible by 32."""
    declare_torchvision_operators()
    import timm

    levels = [f"x{i}_nocls" for i in (1, 2, 3, 4)]
    model = timm.create_model(name, return_interm_layers=True, out_features=levels, **arguments)

    def set_size(model: Any, inputs: tuple[Tensor]) -> None:
        height, width = inputs[0].shape[2:]
        for i, stride in enumerate((4, 8, 16, 32), start=1):
            embed = getattr(model, f"patch_embed{i}")
            embed.img_size, embed.grid_size = None, (height // stride, width // stride)

    model.register_forward_pre_hook(set_size)
    model.register_forward_hook(lambda model, inputs, features: tuple(features.values()))
    return model


class ForSize(nn.Module):
    """A network that takes only the size of image that it is built for: one is built for each new size."""

    def __init__(self, build: Callable[[tuple[int, int]], nn.Module]) -> None:
        super().__init__()
        self.build = build
        self.networks = nn.ModuleDict()

    def forward(self, image: Tensor) -> Any:
        height, width = image.shape[2:]
        name = f"{height}x{width}"
        if name not in self.networks:
            self.networks[name] = self.build((height, width)).to(image).train(self.training)
        return self.networks[name](image)


def timm_for_size(build: Callable[[tuple[int, int]], nn.Module]) -> ForSize:
    """timm's network, which is built at the first image. That timm is not installed is known at once."""
    declare_torchvision_operators()
    import timm  # noqa: F401

    return ForSize(build)


LAST_BLOCK: dict[str, Any] = dict(arch="small", pyramid=None, taps=(-1,), final_norm=True, drop_path_rate=0.0)
"""Of our ViT and its successors: the normed result of the last block."""


class Tokens(nn.Module):
    """A network as a function from an image to the tokens of its last block, (B, T + N, C), in a tuple."""

    def __init__(self, network: nn.Module, tokens: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.tokens = network, tokens

    def forward(self, image: Tensor) -> tuple[Tensor]:
        return (self.tokens(image),)


def timm_vit(name: str) -> nn.Module:
    declare_torchvision_operators()
    import timm

    network = timm.create_model(name, num_classes=0, dynamic_img_size=True)
    return Tokens(network, network.forward_features)


def transformers_vit(family: str, **arguments: Any) -> nn.Module:
    """``family`` is ViT, Dinov2 or DINOv3ViT, in the small size, with PyTorch's attention kernel."""
    declare_torchvision_operators()
    import transformers

    options = dict(interpolate_pos_encoding=True) if family == "ViT" else {}
    sizes = dict(hidden_size=384, num_attention_heads=6, num_hidden_layers=12)
    config = getattr(transformers, f"{family}Config")(**sizes, **arguments, attn_implementation="sdpa")
    network = getattr(transformers, f"{family}Model")(config)
    return Tokens(network, lambda image: network(image, **options).last_hidden_state)


class Intermediates(nn.Module):
    """timm's network as a function from an image to its maps at some blocks, or stages."""

    def __init__(self, network: Any, indices: list[int]) -> None:
        super().__init__()
        self.network, self.indices = network, indices

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        options = dict(stop_early=True, intermediates_only=True)
        return tuple(self.network.forward_intermediates(image, self.indices, **options))


def timm_cait(arch: str, size: tuple[int, int]) -> nn.Module:
    """For one size of image, as its table of positions is of that size."""
    declare_torchvision_operators()
    import timm

    network = timm.create_model(f"cait_{arch}_224", img_size=size, num_classes=0)
    return Intermediates(network, [5, 11, 17, 23])


def timm_xcit(name: str) -> nn.Module:
    declare_torchvision_operators()
    import timm

    return Intermediates(timm.create_model(f"xcit_{name}_224", num_classes=0), [3, 5, 7, 11])


def timm_mvit(size: tuple[int, int]) -> nn.Module:
    """For one size of image: its tables of distances are of a square that holds the image."""
    declare_torchvision_operators()
    import timm

    network = timm.create_model("mvitv2_tiny", img_size=max(size), drop_path_rate=0.2, num_classes=0)
    return Intermediates(network, [0, 1, 2, 3])


def as_classifier(network: MViTv2) -> MViTv2:
    """The form of the authors' classifiers and of timm: no windows, and the last block of a stage pools its keys and
    values as the others do."""
    for stage in network.stages:
        attentions = [part for part in stage.modules() if isinstance(part, PoolingAttention)]
        for attention in attentions:
            attention.windows = None
            attention.pool_k.stride = attention.pool_v.stride = attentions[0].pool_k.stride
    return network


def mvit_without_windows(**arguments: Any) -> nn.Module:
    """Ours, in the form that timm's network computes."""
    return as_classifier(MViTv2(arch="tiny", **arguments))


def cait(arch: str) -> tuple[Contender, ...]:
    return (
        Contender("ours", lambda: CaiT(arch=arch, pyramid=None)),
        Contender("timm", lambda: timm_for_size(lambda size: timm_cait(arch, size))),
    )


def xcit(arch: str) -> tuple[Contender, ...]:
    return (
        Contender("ours", lambda: XCiT(arch=arch, pyramid=None)),
        Contender("timm", lambda: timm_xcit(arch)),
    )


def timm_pit(size: tuple[int, int]) -> nn.Module:
    return timm_levels("pit_s_224", 0.1, img_size=size)


CONTENDERS: dict[str, tuple[Contender, ...]] = {
    "coat_lite_s": (
        Contender("ours", lambda: CoaT(arch="lite_small")),
        Contender("timm", lambda: timm_coat("coat_lite_small")),
    ),
    "coat_mini": (
        Contender("ours", lambda: CoaT(arch="mini")),
        Contender("timm", lambda: timm_coat("coat_mini")),
    ),
    "pvt_s": (
        Contender("ours", lambda: PVT(arch="small")),
        Contender("mmdet", mmdet_pvt),
        Contender("transformers", transformers_pvt),
    ),
    "pvt_v2_b2": (
        Contender("ours", lambda: PVTv2(arch="b2")),
        Contender("mmdet", mmdet_pvt_v2),
        Contender("timm", lambda: timm_levels("pvt_v2_b2", 0.1)),
        Contender("transformers", transformers_pvt_v2),
    ),
    "mit_b2": (
        Contender("ours", lambda: MiT(arch="b2")),
        Contender("mmseg", mmseg_mit),
        Contender("transformers", transformers_mit),
    ),
    "segformer_b0": segformers("b0", 256),
    "segformer_b0_wide": segformers("b0", 768),
    "segformer_b2": segformers("b2", 768),
    "segformer_head": segformer_heads("b2", 768),
    "pit_s": (
        Contender("ours", lambda: PiT(arch="s", stem="published", out_indices=(1, 2, 3))),
        Contender("timm", lambda: timm_for_size(timm_pit)),
    ),
    "deit_s": (
        Contender("ours", lambda: ViT(**LAST_BLOCK)),
        Contender("timm", lambda: timm_vit("deit_small_patch16_224")),
        Contender("transformers", lambda: transformers_vit("ViT", intermediate_size=1536)),
    ),
    "dinov2_s": (
        Contender("ours", lambda: DINOv2(**LAST_BLOCK)),
        Contender("timm", lambda: timm_vit("vit_small_patch14_dinov2")),
        Contender("transformers", lambda: transformers_vit("Dinov2", image_size=518, patch_size=14)),
    ),
    "dinov3_s": (
        Contender("ours", lambda: DINOv3(**LAST_BLOCK)),
        Contender("timm", lambda: timm_vit("vit_small_patch16_dinov3")),
        Contender("transformers", lambda: transformers_vit("DINOv3ViT", intermediate_size=1536, num_register_tokens=4)),
    ),
    "cait_xxs24": cait("xxs24"),
    "cait_s24": cait("s24"),
    "xcit_s12_p16": xcit("small_12_p16"),
    "xcit_s12_p8": xcit("small_12_p8"),
    "mvit_v2_t": (
        Contender("ours", mvit_without_windows),
        Contender("windows", lambda: MViTv2(arch="tiny")),
        Contender("timm", lambda: timm_for_size(timm_mvit)),
    ),
    "swin_t": (
        Contender("ours", lambda: Swin(arch="tiny")),
        Contender("mmdet", mmdet_swin),
        Contender("mmseg", mmseg_swin),
        Contender("transformers", transformers_swin),
        Contender("timm", lambda: timm_levels("swin_tiny_patch4_window7_224", 0.2, strict_img_size=False)),
    ),
}
"""Per network: ours first."""
