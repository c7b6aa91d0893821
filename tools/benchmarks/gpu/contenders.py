"""Who is measured on a GPU: ours in two forms, ours of an older version, and other implementations.

All drop the same share of paths in training, the default of our network. The others have their best switches on.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

from mm_vitbackbones.backbones import PVT, CaiT, CoaT, MiT, PiT, PVTv2, Swin, XCiT

from .. import columnar
from ..contenders import (
    ALL_STAGES,
    CLASSES,
    DEPTHS_OF_B2,
    WIDTHS,
    Levels,
    Logits,
    Whole,
    declare_torchvision_operators,
    mmseg_head,
    mvit_without_windows,
    our_head,
    timm_cait,
    timm_coat,
    timm_for_size,
    timm_levels,
    timm_mvit,
    timm_xcit,
)

OURS, LIGHT, BEFORE = "ours", "ours, with_cp", "ours, before"
LIGHT_FORM = "all_but_attention"
"""The ``with_cp`` of the second row: the form that costs little time."""


@dataclass(frozen=True)
class Contender:
    """One implementation of one network. ``build`` raises ImportError where its package is not installed."""

    name: str
    build: Callable[[], nn.Module]
    parts: frozenset[str] = frozenset({"train", "inference", "large"})
    """What is measured of it."""


class _Absent(ModuleType):
    """In place of mmcv's compiled operators: mmdet and mmseg look for them, and no network here calls one."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError(f"mmcv has no compiled operators here: {name}")

        return call


def prepare_imports() -> None:
    """Makes the peers importable where torchvision or mmcv lacks its compiled part."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        declare_torchvision_operators()
    try:
        import mmcv
    except ImportError:
        return
    try:
        import mmcv._ext
    except ImportError:
        sys.modules["mmcv._ext"] = mmcv._ext = _Absent("mmcv._ext")


def with_sdpa(make: Callable[[Any], nn.Module], config: Any) -> nn.Module:
    """transformers' network with PyTorch's attention, where it has that switch."""
    try:
        config._attn_implementation = "sdpa"
        return make(config)
    except ValueError:  # PVT and PVTv2 have no such form
        config._attn_implementation = "eager"
        return make(config)


def with_fused_attention(build: Callable[[], nn.Module]) -> nn.Module:
    """timm's network built with its fused attention, which Swin has off by default."""
    from timm.layers import config, set_fused_attn

    before = config._USE_FUSED_ATTN
    set_fused_attn(True, experimental=True)
    try:
        return build()
    finally:
        config._USE_FUSED_ATTN = before


def timm_swin(rate: float, **options: Any) -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    known = inspect.signature(SwinTransformer).parameters
    name = "dynamic_img_size" if "dynamic_img_size" in known else "strict_img_size"  # as older versions call it
    return timm_levels("swin_tiny_patch4_window7_224", rate, **{name: name == "dynamic_img_size"}, **options)


def of_mmdet(name: str, **arguments: Any) -> nn.Module:
    from mmdet.models import backbones

    return getattr(backbones, name)(**arguments)


def of_mmseg(name: str, **arguments: Any) -> nn.Module:
    from mmseg.models import backbones

    return getattr(backbones, name)(**arguments)


def _mmseg_mit(arch: str, rate: float) -> nn.Module:
    spec = MiT.archs[arch]
    sizes = dict(embed_dims=WIDTHS[arch][0], num_layers=[*spec.depths], num_heads=[*spec.num_heads])
    return of_mmseg("MixVisionTransformer", **sizes, drop_path_rate=rate)


def _transformers_pvt(rate: float) -> nn.Module:
    from transformers import PvtConfig, PvtModel

    network = with_sdpa(PvtModel, PvtConfig(depths=[*DEPTHS_OF_B2], drop_path_rate=rate))
    return Levels(network, "hidden_states", output_hidden_states=True)


def _transformers_pvt_v2(rate: float) -> nn.Module:
    from transformers import PvtV2Backbone, PvtV2Config

    sizes = dict(depths=[*DEPTHS_OF_B2], hidden_sizes=[*WIDTHS["b2"]], drop_path_rate=rate)
    return Levels(with_sdpa(PvtV2Backbone, PvtV2Config(**sizes, out_features=ALL_STAGES)), "feature_maps")


def _segformer_config(arch: str, rate: float, **arguments: Any) -> Any:
    from transformers import SegformerConfig

    depths, widths = [*MiT.archs[arch].depths], [*WIDTHS[arch]]
    return SegformerConfig(depths=depths, hidden_sizes=widths, drop_path_rate=rate, **arguments)


def _transformers_mit(arch: str, rate: float) -> nn.Module:
    from transformers import SegformerModel

    network = with_sdpa(SegformerModel, _segformer_config(arch, rate))
    return Levels(network, "hidden_states", output_hidden_states=True)


def _transformers_segformer(arch: str, channels: int, rate: float) -> nn.Module:
    from transformers import SegformerForSemanticSegmentation

    config = _segformer_config(arch, rate, decoder_hidden_size=channels, num_labels=CLASSES)
    return Logits(with_sdpa(SegformerForSemanticSegmentation, config))


def _transformers_swin(rate: float) -> nn.Module:
    from transformers import SwinBackbone, SwinConfig

    return Levels(with_sdpa(SwinBackbone, SwinConfig(drop_path_rate=rate, out_features=ALL_STAGES)), "feature_maps")


def _ours(build: Callable[..., nn.Module]) -> tuple[Contender, ...]:
    """Our forms of a network that ``build`` makes with arguments of the backbone."""
    return (
        Contender(OURS, build),
        Contender(LIGHT, lambda: build(with_cp=LIGHT_FORM), frozenset({"train"})),
        Contender(BEFORE, build, frozenset({"train", "inference"})),
    )


def _segformers(arch: str, channels: int, rate: float) -> tuple[Contender, ...]:
    return (
        *_ours(lambda **more: Whole(MiT(arch=arch, **more), our_head(arch, channels))),
        Contender("mmseg", lambda: Whole(_mmseg_mit(arch, rate), mmseg_head(arch, channels))),
        Contender("transformers", lambda: _transformers_segformer(arch, channels, rate)),
    )


def _columnar(network: columnar.Network) -> tuple[Contender, ...]:
    """timm with ``dynamic_img_size=True``, transformers with PyTorch's attention."""
    others = Contender("timm", network.timm), Contender("transformers", network.transformers)
    return (*_ours(network.ours), *others)


CONTENDERS: dict[str, tuple[Contender, ...]] = {
    "pvt_s": (
        *_ours(lambda **more: PVT(arch="small", **more)),
        Contender(
            "mmdet", lambda: of_mmdet("PyramidVisionTransformer", num_layers=[*DEPTHS_OF_B2], drop_path_rate=0.1)
        ),
        Contender("transformers", lambda: _transformers_pvt(0.1)),
    ),
    "pvt_v2_b2": (
        *_ours(lambda **more: PVTv2(arch="b2", **more)),
        Contender(
            "mmdet",
            lambda: of_mmdet(
                "PyramidVisionTransformerV2", embed_dims=64, num_layers=[*DEPTHS_OF_B2], drop_path_rate=0.1
            ),
        ),
        Contender("timm", lambda: timm_levels("pvt_v2_b2", 0.1)),
        Contender("transformers", lambda: _transformers_pvt_v2(0.1)),
    ),
    "mit_b2": (
        *_ours(lambda **more: MiT(arch="b2", **more)),
        Contender("mmseg", lambda: _mmseg_mit("b2", 0.1)),
        Contender("transformers", lambda: _transformers_mit("b2", 0.1)),
    ),
    "swin_t": (
        *_ours(lambda **more: Swin(arch="tiny", **more)),
        Contender("mmdet", lambda: of_mmdet("SwinTransformer", drop_path_rate=0.2)),
        Contender("mmseg", lambda: of_mmseg("SwinTransformer", drop_path_rate=0.2)),
        Contender("transformers", lambda: _transformers_swin(0.2)),
        Contender("timm", lambda: timm_swin(0.2)),
        Contender("timm, fused", lambda: with_fused_attention(lambda: timm_swin(0.2))),
    ),
    "coat_lite_s": (
        *_ours(lambda **more: CoaT(arch="lite_small", **more)),
        Contender("timm", lambda: timm_coat("coat_lite_small")),
    ),
    "coat_mini": (
        *_ours(lambda **more: CoaT(arch="mini", **more)),
        Contender("timm", lambda: timm_coat("coat_mini")),
    ),
    "pit_s": (
        *_ours(lambda **more: PiT(arch="s", stem="published", out_indices=(1, 2, 3), **more)),
        Contender("timm", lambda: timm_for_size(lambda size: timm_levels("pit_s_224", 0.1, img_size=size))),
    ),
    "segformer_b0": _segformers("b0", 256, 0.1),
    "segformer_b2": _segformers("b2", 768, 0.1),
    **{name: _columnar(network) for name, network in columnar.NETWORKS.items()},
    "cait_s24": (
        *_ours(lambda **more: CaiT(arch="s24", pyramid=None, **more)),
        Contender("timm", lambda: timm_for_size(lambda size: timm_cait("s24", size))),
    ),
    "xcit_s12_p16": (
        *_ours(lambda **more: XCiT(arch="small_12_p16", pyramid=None, **more)),
        Contender("timm", lambda: timm_xcit("small_12_p16")),
    ),
    "mvit_v2_t": (*_ours(mvit_without_windows), Contender("timm", lambda: timm_for_size(timm_mvit))),
}
"""Per network: ours first. timm's fused attention is on by default everywhere except in Swin, and CoaT has none."""

BEST_COMPILED = {
    "pvt_s": "mmdet",
    "pvt_v2_b2": "timm",
    "mit_b2": "transformers",
    "swin_t": "timm, fused",
    "coat_lite_s": "timm",
    "coat_mini": "timm",
    "pit_s": "timm",
    "segformer_b0": "transformers",
    "segformer_b2": "transformers",
    **dict.fromkeys((*columnar.NETWORKS, "cait_s24", "xcit_s12_p16", "mvit_v2_t"), "timm"),
}
"""The peer that is compiled, as compiling takes a minute: the fastest one."""


def find(network: str, name: str) -> Contender:
    return next(contender for contender in CONTENDERS[network] if contender.name == name)
