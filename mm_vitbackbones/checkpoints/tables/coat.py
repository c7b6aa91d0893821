"""CoaT and CoaT-Lite: their weights as published by the authors, under names that timm has kept."""

from __future__ import annotations

import re

import torch

from mm_vitbackbones.checkpoints.key_map import KeyMap, under
from mm_vitbackbones.checkpoints.layout import Family, Layout, State, Surgery
from mm_vitbackbones.checkpoints.record import APACHE, BY_AUTHORS, PublishedFile, size_of
from mm_vitbackbones.checkpoints.surgery import STEM, rows
from mm_vitbackbones.errors import CheckpointError

SPLIT_QKV = tuple(rows(f"{part}qkv", ((f"{part}qk", 2), (f"{part}v", 1))) for part in ("", "1.", "2.", "3."))
"""Of the serial blocks, and of each level of the parallel ones."""

# Official files name what a stage shares once for the stage and again for each block that holds it, and the network
# that a parallel block shares once for each level. The table gives these aliases names of their own, and surgery
# removes them. These patterns give the owner of each alias.
_OWNERS = (
    (re.compile(r"(stages\.\d+\.)blocks\.\d+\.(cpe|crpe)\."), r"\1\2."),
    (re.compile(r"parallel_blocks\.\d+\.crpe\.(\d+)\."), r"stages.\1.crpe."),
    (re.compile(r"(parallel_blocks\.\d+)\.ffn_alias\.\d+\."), r"\1.ffn."),
)


def _owner(key: str) -> str | None:
    """The name of what an alias stands for, or None for a name that is no alias."""
    return next((pattern.sub(owner, key) for pattern, owner in _OWNERS if pattern.match(key)), None)


def _drop_aliases(state: State) -> State:
    """Removes aliases, which have to equal their owners; where a file has the alias alone, it becomes the owner."""
    result = {key: tensor for key, tensor in state.items() if _owner(key) is None}
    for key, tensor in state.items():
        owner = _owner(key)
        if owner and not torch.equal(result.setdefault(owner, tensor), tensor):
            raise CheckpointError(f"{owner} is shared between blocks, and the file holds several values of it")
    return result


def _add_aliases(state: State) -> State:
    result = dict(state)

    def alias(owner: str, name: str) -> None:
        result.update({name + key.removeprefix(owner): t for key, t in state.items() if key.startswith(owner)})

    for key in state:
        if serial := re.fullmatch(r"(stages\.\d+)\.(blocks\.\d+)\.attn\.proj\.weight", key):
            for part in ("cpe.", "crpe."):
                alias(f"{serial[1]}.{part}", f"{serial[1]}.{serial[2]}.{part}")
        elif parallel := re.fullmatch(r"(parallel_blocks\.\d+)\.attn\.(\d+)\.proj\.weight", key):
            block, level = parallel.groups()
            alias(f"stages.{level}.crpe.", f"{block}.crpe.{level}.")
            if level != "1":
                alias(f"{block}.ffn.", f"{block}.ffn_alias.{level}.")
    return result


ALIASES = Surgery(_drop_aliases, _add_aliases)

OFFICIAL = Layout(
    "official",
    marks=("serial_blocks1.0.factoratt_crpe.qkv.weight", "cls_token1"),
    keys=KeyMap(
        [
            ("cls_token{stage+1}", "stages.{stage}.cls_token"),
            ("patch_embed{stage+1}.", "stages.{stage}.patch_embed."),
            ("cpe{stage+1}.proj.", "stages.{stage}.cpe.conv."),
            ("crpe{stage+1}.conv_list.", "stages.{stage}.crpe.convs."),
            *under(
                "serial_blocks{stage+1}.{block}.",
                "stages.{stage}.blocks.{block}.",
                [
                    ("cpe.proj.", "cpe.conv."),
                    ("norm1.", "norm1."),
                    ("factoratt_crpe.qkv.", "attn.qkv."),
                    ("factoratt_crpe.crpe.conv_list.", "crpe.convs."),
                    ("factoratt_crpe.proj.", "attn.proj."),
                    ("norm2.", "norm2."),
                    ("mlp.", "ffn."),
                ],
            ),
            *under(
                "parallel_blocks.{block}.",
                "parallel_blocks.{block}.",
                [
                    ("norm1{level+1}.", "norm1.{level}."),
                    ("factoratt_crpe{level+1}.qkv.", "attn.{level}.qkv."),
                    ("factoratt_crpe{level+1}.crpe.conv_list.", "crpe.{level}.convs."),
                    ("factoratt_crpe{level+1}.proj.", "attn.{level}.proj."),
                    ("norm2{level+1}.", "norm2.{level}."),
                    ("mlp2.", "ffn."),
                    ("mlp3.", "ffn_alias.2."),
                    ("mlp4.", "ffn_alias.3."),
                ],
            ),
            ("norm{stage+1}.", "classifier.norm.{stage}."),
            ("aggregate.", "classifier.aggregate."),
            ("head.", "classifier.head."),
        ]
    ),
    surgery=(ALIASES, *SPLIT_QKV),
)

OURS = Layout(
    "ours",
    marks=("stages.0.cls_token", "stages.0.crpe.convs.0.weight", "stages.0.patch_embed.proj.weight"),
    keys=KeyMap(
        [
            ("stages.{stage}.", "stages.{stage}."),
            ("parallel_blocks.{block}.", "parallel_blocks.{block}."),
            ("classifier.", "classifier."),
        ]
    ),
)

FAMILY = Family(
    "CoaT",
    layouts=(OFFICIAL, OURS),
    adapters=(STEM,),
    also=(("timm", "official"),),
    level_only=(r"parallel_blocks\.\d+\.norm2\.\d+\..+",),
)


def _file(arch: str, top1: float, sha256: str, name: str = "imagenet1k") -> PublishedFile:
    size = size_of(name)
    url = f"https://vcl.ucsd.edu/coat/pretrained/coat_{arch}{f'_{size}x{size}' if size != 224 else ''}_{sha256}.pth"
    return PublishedFile("CoaT", arch, name, url, APACHE, BY_AUTHORS, size=size, top1=top1, sha256=sha256)


FILES = (
    _file("tiny", 78.3, "c6efc33c"),
    _file("mini", 81.0, "40667eec"),
    _file("small", 82.1, "7479cf9b"),
    _file("lite_tiny", 77.5, "e88e96b0"),
    _file("lite_mini", 79.1, "6b4a8ae5"),
    _file("lite_small", 81.9, "8d362f48"),
    _file("lite_medium", 83.6, "a750cd63"),
    _file("lite_medium", 84.5, "f9129688", "imagenet1k_384"),
)
