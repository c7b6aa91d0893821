"""PVTv2: its weights as published by the authors, OpenMMLab, Hugging Face and timm.

The first two and ours have the names of MiT's; the ratio of the feed-forward networks distinguishes them.
"""

from __future__ import annotations

from mm_vitbackbones.checkpoints.key_map import KeyMap, under
from mm_vitbackbones.checkpoints.layout import Family, Layout
from mm_vitbackbones.checkpoints.record import APACHE, BY_AUTHORS, PublishedFile
from mm_vitbackbones.checkpoints.surgery import STEM
from mm_vitbackbones.checkpoints.tables.pvt_common import (
    JOIN_KV,
    OFFICIAL_BLOCK,
    OVERLAP_OFFICIAL,
    OVERLAP_OPENMMLAB,
    OVERLAP_OURS,
    RELEASES,
    has_mit_ratio,
)

HUGGINGFACE = Layout(
    "huggingface",
    marks=("encoder.layers.0.blocks.0.attention.query.weight", "encoder.layers.0.patch_embedding.proj.weight"),
    keys=KeyMap(
        [
            *under(
                "encoder.layers.{stage}.",
                "stages.{stage}.",
                [
                    ("patch_embedding.proj.", "patch_embed.proj."),
                    ("patch_embedding.layer_norm.", "patch_embed.norm."),
                    *under(
                        "blocks.{block}.",
                        "blocks.{block}.",
                        [
                            ("layer_norm_1.", "norm1."),
                            ("attention.query.", "attn.q."),
                            ("attention.key.", "attn.k."),
                            ("attention.value.", "attn.v."),
                            ("attention.spatial_reduction.", "attn.reduction.conv."),
                            ("attention.layer_norm.", "attn.reduction.norm."),
                            ("attention.proj.", "attn.proj."),
                            ("layer_norm_2.", "norm2."),
                            ("mlp.dense1.", "ffn.fc1."),
                            ("mlp.dwconv.dwconv.", "ffn.dwconv."),
                            ("mlp.dense2.", "ffn.fc2."),
                        ],
                    ),
                    ("layer_norm.", "norm."),
                ],
            ),
            ("classifier.", "classifier.head."),
        ]
    ),
    surgery=(JOIN_KV,),
    own_prefix="pvt_v2.",
)


def _timm(name: str, stages: str) -> Layout:
    """timm's names. The first patch embedding is outside the stages; those of the later stages are their downsampling.

    Args:
        stages: the beginning of a stage's name, without its number.
    """
    return Layout(
        name,
        marks=(f"{stages}0.blocks.0.attn.q.weight", "patch_embed.proj.weight"),
        keys=KeyMap(
            [
                ("patch_embed.", "stages.0.patch_embed."),
                (f"{stages}{{later+1}}.downsample.", "stages.{later+1}.patch_embed."),
                *under(
                    f"{stages}{{stage}}.blocks.{{block}}.",
                    "stages.{stage}.blocks.{block}.",
                    [*OFFICIAL_BLOCK, ("mlp.dwconv.", "ffn.dwconv.")],
                ),
                (f"{stages}{{stage}}.norm.", "stages.{stage}.norm."),
                ("head.", "classifier.head."),
            ]
        ),
    )


TIMM, TIMM_FEATURES = _timm("timm", "stages."), _timm("timm-features", "stages_")

FAMILY = Family(
    "PVTv2",
    layouts=(OVERLAP_OFFICIAL, OVERLAP_OPENMMLAB, HUGGINGFACE, TIMM, TIMM_FEATURES, OVERLAP_OURS),
    claims=lambda ours: not has_mit_ratio(ours),
    adapters=(STEM,),
    twins=(("b5", "MiT b5"),),
    cautions=(
        ("openmmlab", "b2_li", "OpenMMLab's PVTv2 has no linear attention: no module of theirs takes this file"),
    ),
)


def _file(arch: str, top1: float) -> PublishedFile:
    return PublishedFile("PVTv2", arch, "imagenet1k", f"{RELEASES}/pvt_v2_{arch}.pth", APACHE, BY_AUTHORS, top1=top1)


FILES = (
    _file("b0", 70.5),
    _file("b1", 78.7),
    _file("b2_li", 82.1),
    _file("b2", 82.0),
    _file("b3", 83.1),
    _file("b4", 83.6),
    _file("b5", 83.8),
)
