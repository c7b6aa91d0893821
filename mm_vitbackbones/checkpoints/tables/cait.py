"""CaiT: its weights as published by the authors; timm has the same names."""

from __future__ import annotations

from mm_vitbackbones.checkpoints.key_map import KeyMap, under
from mm_vitbackbones.checkpoints.layout import Family, Layout
from mm_vitbackbones.checkpoints.record import APACHE, BY_AUTHORS, META, PublishedFile
from mm_vitbackbones.checkpoints.tables.columnar import (
    MLP,
    NORMS,
    NOT_TAPPED,
    OUR_NAMES,
    POSITION,
    PYRAMID,
    SPLIT_POSITIONS,
    STEM,
    TABLE,
)

CLASS_ATTENTION = r"class_attention\..+"
SHARED = [*NORMS, ("attn.proj.", "attn.proj."), *MLP, ("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma")]

OFFICIAL = Layout(
    "official",
    ("blocks.0.attn.proj_l.weight", "blocks.0.attn.proj_w.weight", "patch_embed.proj.weight", "pos_embed"),
    KeyMap(
        [
            ("patch_embed.proj.", "stem.proj."),
            ("pos_embed", TABLE),
            *under(
                "blocks.{block}.",
                "blocks.{block}.",
                [*SHARED, *((f"attn.{name}.", f"attn.{name}.") for name in ("qkv", "proj_l", "proj_w"))],
            ),
            ("cls_token", "class_attention.token"),
            *under(
                "blocks_token_only.{block}.",
                "class_attention.blocks.{block}.",
                [*SHARED, *((f"attn.{name}.", f"attn.{name}.") for name in "qkv")],
            ),
            ("norm.", "norm."),
            ("head.", "classifier.head."),
        ]
    ),
    surgery=(SPLIT_POSITIONS,),
)

OURS = Layout(
    "ours",
    ("stem.position.table", "blocks.0.attn.proj_l.weight"),
    KeyMap([*OUR_NAMES.pairs, ("class_attention.", "class_attention.")]),
)

FAMILY = Family(
    "CaiT",
    layouts=(OFFICIAL, OURS),
    adapters=(STEM, POSITION),
    may_be_fresh=(PYRAMID,),
    level_only=(*NOT_TAPPED, CLASS_ATTENTION),
    also=(("timm", "official"),),
)


def _file(arch: str, top1: float) -> PublishedFile:
    kind, _, side = arch.partition("_")
    name = f"imagenet1k_{side}" if side else "imagenet1k"
    url = f"{META}/deit/{kind.upper()}_{side or 224}.pth"
    return PublishedFile("CaiT", arch, name, url, APACHE, BY_AUTHORS, size=int(side or 224), top1=top1)


FILES = (
    _file("xxs24", 78.4),
    _file("xxs24_384", 80.95),
    _file("xxs36", 79.75),
    _file("xxs36_384", 82.2),
    _file("xs24_384", 84.1),
    _file("s24", 83.5),
    _file("s24_384", 85.1),
    _file("s36_384", 85.4),
    _file("m36_384", 86.1),
    _file("m48_448", 86.5),
)
