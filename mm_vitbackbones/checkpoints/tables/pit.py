"""PiT: its weights as published by the authors and in timm's naming (which Hugging Face's files have, too)."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

from mm_vitbackbones.checkpoints.key_map import KeyMap, under
from mm_vitbackbones.checkpoints.layout import Adapter, Family, Layout, State, Surgery
from mm_vitbackbones.checkpoints.record import APACHE, BY_TIMM, PublishedFile
from mm_vitbackbones.checkpoints.surgery import STEM, resize_table

TABLE = "stem.position.table"

POSITION = Adapter(
    re.compile(re.escape(TABLE)),
    partial(resize_table, mode="bicubic"),
    "resized from {source[1]}x{source[2]} to {target[1]}x{target[2]}",
)


def _table_to_grid(state: State) -> State:
    """(1, C, H, W) -> (1, H, W, C)."""
    return {key: t.permute(0, 2, 3, 1) if key == TABLE and t.dim() == 4 else t for key, t in state.items()}


def _table_to_map(state: State) -> State:
    return {key: t.permute(0, 3, 1, 2) if key == TABLE and t.dim() == 4 else t for key, t in state.items()}


COMMON = [
    ("patch_embed.conv.", "stem.proj."),
    ("pos_embed", TABLE),
    ("cls_token", "stem.class_tokens"),
    *under(
        "transformers.{stage}.blocks.{block}.",
        "stages.{stage}.blocks.{block}.",
        [
            ("norm1.", "norm1."),
            ("attn.qkv.", "attn.qkv."),
            ("attn.proj.", "attn.proj."),
            ("norm2.", "norm2."),
            ("mlp.fc1.", "ffn.fc1."),
            ("mlp.fc2.", "ffn.fc2."),
        ],
    ),
    ("norm.", "classifier.norm."),
    ("head.", "classifier.head."),
    ("head_dist.", "classifier.head_dist."),
]

OFFICIAL = Layout(
    "official",
    marks=("pools.0.conv.weight", "transformers.0.blocks.0.attn.qkv.weight"),
    keys=KeyMap([*COMMON, ("pools.{stage}.", "stages.{stage+1}.pool.")]),
    surgery=(Surgery(_table_to_grid, _table_to_map),),
)

# timm has a pooling in the stage that it leads to.
TIMM = Layout(
    "timm",
    marks=("transformers.1.pool.conv.weight", "transformers.0.blocks.0.attn.qkv.weight"),
    keys=KeyMap([*COMMON, ("transformers.{later+1}.pool.", "stages.{later+1}.pool.")]),
    surgery=OFFICIAL.surgery,
)

OURS = Layout(
    "ours",
    marks=("stem.class_tokens", "stages.0.blocks.0.attn.qkv.weight"),
    keys=KeyMap(
        [
            ("stem.", "stem."),
            ("stages.{stage}.", "stages.{stage}."),
            ("upsample.", "upsample."),
            ("classifier.", "classifier."),
        ]
    ),
)

FAMILY = Family(
    "PiT",
    layouts=(OFFICIAL, TIMM, OURS),
    adapters=(replace(STEM, key=re.compile(r"stem\.proj\.weight")), POSITION),
    may_be_fresh=(r"upsample\..+",),  # level 0 is not part of the published network
)


def _file(arch: str, top1: float) -> PublishedFile:
    url = f"https://huggingface.co/timm/pit_{arch}_224.in1k/resolve/main/model.safetensors"
    return PublishedFile("PiT", arch, "imagenet1k", url, APACHE, BY_TIMM, top1=top1)


# The authors publish theirs on Google Drive, which has no address to download from: these are timm's.
FILES = (
    _file("ti", 73.0),
    _file("ti_distilled", 74.6),
    _file("xs", 78.1),
    _file("xs_distilled", 79.1),
    _file("s", 80.9),
    _file("s_distilled", 81.9),
    _file("b", 82.0),
    _file("b_distilled", 84.0),
)
