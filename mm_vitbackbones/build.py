"""A backbone by one name, without a config: ``mm_vitbackbones.build_backbone("pvt_v2_b2")``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from mm_vitbackbones import backbones
from mm_vitbackbones.backbones import Backbone
from mm_vitbackbones.errors import ArgumentError, did_you_mean


def families() -> dict[str, type[Backbone]]:
    """The families by the names of their classes."""
    return {name: cls for name, cls in vars(backbones).items() if getattr(cls, "archs", None)}


def backbone_names() -> dict[str, tuple[type[Backbone], str]]:
    """Family and arch by name: ``"pvt_v2_b2"`` stands for ``PVTv2(arch="b2")``."""
    return {f"{_snake(name)}_{arch}": (cls, arch) for name, cls in families().items() for arch in cls.archs}


def build_backbone(
    name: str, *, pretrained: bool | str | os.PathLike[str] | Mapping[str, Any] | None = None, **arguments: Any
) -> Backbone:
    """A backbone as a plain torch module.

    Args:
        name: family and arch, such as ``"pvt_small"``, ``"pvt_v2_b2"``, ``"mit_b0"``, ``"swin_tiny"``,
            ``"coat_lite_small"`` or ``"pit_s_distilled"``.
        pretrained: True for the published weights of this arch (those of ImageNet-1k, where they exist), the name of
            others (``"imagenet22k"``), or a file in any known layout: a path, a URL, or what such a file holds.
        arguments: of the backbone: ``out_indices``, ``in_channels``, ``drop_path_rate`` and so on.

    Raises:
        ValueError: for an unknown name, with the nearest ones, or an argument out of its range.
        CheckpointError: if the weights are not of this backbone, or there are no weights of that name.
    """
    known = backbone_names()
    if name not in known:
        hint = did_you_mean(str(name), known) or f"; known are {', '.join(known)}"
        raise ArgumentError(f"there is no backbone {name!r}{hint}")
    family, arch = known[name]
    if "arch" in arguments:
        raise ArgumentError(f"{name!r} says the arch: leave arch={arguments['arch']!r} out, or give another name")
    backbone = family(arch=arch, **arguments)  # type: ignore[call-arg]
    if pretrained is not None and pretrained is not False:
        from mm_vitbackbones.checkpoints import load_pretrained, published

        if pretrained is True:
            pretrained = published.default_of(family.__name__, arch).url
        load_pretrained(backbone, pretrained)
    return backbone


def _snake(name: str) -> str:
    """``PVTv2`` -> ``pvt_v2``, ``MiT`` -> ``mit``."""
    return re.sub(r"(?<=[A-Z])(v\d)", r"_\1", name).lower()
