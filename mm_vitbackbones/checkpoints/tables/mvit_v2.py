"""MViTv2: its weights as the authors publish them (of classifiers, and detectron2's of detectors), and timm's names."""

from __future__ import annotations

import re

from mm_vitbackbones.checkpoints.key_map import KeyMap, under
from mm_vitbackbones.checkpoints.layout import Family, Layout, State, Surgery
from mm_vitbackbones.checkpoints.record import APACHE, BY_AUTHORS, IN1K, IN21K, META, PublishedFile
from mm_vitbackbones.checkpoints.surgery import STEM

BLOCK = [
    *((f"{name}.", f"{name}.") for name in ("norm1", "norm2", "attn.qkv", "attn.proj")),
    *((f"attn.{kind}_{x}.", f"attn.{kind}_{x}.") for kind in ("pool", "norm") for x in "qkv"),
    ("attn.rel_pos_h", "attn.rows"),
    ("attn.rel_pos_w", "attn.columns"),
    ("mlp.fc1.", "ffn.fc1."),
    ("mlp.fc2.", "ffn.fc2."),
]
FLAT, STAGED = re.compile(r"blocks\.(\d+)\.(.+)"), re.compile(r"stages\.(\d+)\.blocks\.(\d+)\.(.+)")
OPENS = "shortcut.weight"
"""What the first block of each later stage has."""


def _in_stages(state: State) -> State:
    """Blocks that are numbered through all stages -> in each stage."""
    blocks = [found for key in state if (found := FLAT.fullmatch(key))]
    first = [0, *sorted(int(found[1]) for found in blocks if found[2] == OPENS)]
    result: State = {}
    for key, tensor in state.items():
        if found := FLAT.fullmatch(key):
            number = int(found[1])
            stage = max(i for i, start in enumerate(first) if start <= number)
            key = f"stages.{stage}.blocks.{number - first[stage]}.{found[2]}"
        result[key] = tensor
    return result


def _through_stages(state: State) -> State:
    """``_in_stages``, backwards. Blocks after a stage that is not here keep their names: their number is not known."""
    blocks: dict[int, set[int]] = {}
    for key in state:
        if found := STAGED.fullmatch(key):
            blocks.setdefault(int(found[1]), set()).add(int(found[2]))
    result: State = {}
    for key, tensor in state.items():
        if found := STAGED.fullmatch(key):
            stage, block = int(found[1]), int(found[2])
            before = [blocks.get(i, set()) for i in range(stage)]
            if all(numbers == {*range(len(numbers))} and numbers for numbers in before):
                key = f"blocks.{sum(map(len, before)) + block}.{found[3]}"
        result[key] = tensor
    return result


NUMBERED_THROUGH = Surgery(_in_stages, _through_stages)

OFFICIAL = Layout(
    "official",
    ("blocks.0.attn.pool_q.weight", "blocks.0.attn.rel_pos_h", "patch_embed.proj.weight"),
    KeyMap(
        [
            ("patch_embed.proj.", "stages.0.patch_embed.proj."),
            *under("blocks.{block}.", "blocks.{block}.", [*BLOCK, ("proj.", "shortcut.")]),
            *((f"scale{stage + 2}_norm.", f"stages.{stage}.norm.") for stage in range(4)),
            ("norm.", "classifier.norm."),
            ("head.", "classifier.head."),
            ("cls_token", "classifier.cls_token"),
        ]
    ),
    surgery=(NUMBERED_THROUGH,),
    own_prefix="bottom_up.",  # detectron2's, next to its pyramid
    besides=("fpn_",),
)

TIMM = Layout(
    "timm",
    ("stages.0.blocks.0.attn.pool_q.weight", "stages.0.blocks.0.attn.rel_pos_h", "patch_embed.proj.weight"),
    KeyMap(
        [
            ("patch_embed.proj.", "stages.0.patch_embed.proj."),
            *under(
                "stages.{stage}.blocks.{block}.",
                "stages.{stage}.blocks.{block}.",
                [*BLOCK, ("shortcut_proj_attn.", "shortcut.")],
            ),
            ("norm.", "classifier.norm."),
            # The official head is head.projection; this one may have another name inside.
            ("head.fc.", "classifier.head.projection."),
            ("cls_token", "classifier.cls_token"),
        ]
    ),
    without=("stages.1.blocks.0.shortcut_proj_mlp.weight",),
)

OURS = Layout(
    "ours",
    ("stages.0.blocks.0.attn.pool_q.weight", "stages.0.patch_embed.proj.weight"),
    KeyMap([("stages.{stage}.", "stages.{stage}."), ("classifier.", "classifier.")]),
)

FAMILY = Family(
    "MViTv2",
    layouts=(OFFICIAL, TIMM, OURS),
    adapters=(STEM,),
    may_be_fresh=(r"stages\.\d+\.norm\.(weight|bias)",),
)


def _file(arch: str, top1: float | None = None) -> PublishedFile:
    """Without an accuracy: of ImageNet-21k."""
    name, data = ("imagenet21k", IN21K) if top1 is None else ("imagenet1k", IN1K)
    url = f"{META}/mvit/mvitv2_models/MViTv2_{arch[0].upper()}_in{name[8:]}.pyth"
    return PublishedFile("MViTv2", arch, name, url, APACHE, BY_AUTHORS, data, top1=top1)


FILES = (
    _file("tiny", 82.3),
    _file("small", 83.6),
    _file("base", 84.4),
    _file("base"),
    # That of ImageNet-1k is of another network, which widens in its feed-forward networks.
    _file("large"),
)
