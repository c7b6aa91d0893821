"""MiT: its weights as published by the authors, OpenMMLab and Hugging Face.

The first two and ours have the names of PVTv2's; the ratio of the feed-forward networks distinguishes them.
Files of a whole SegFormer hold a decode head too, which is left out.
"""

from __future__ import annotations

from mm_vitbackbones.checkpoints.key_map import KeyMap, under
from mm_vitbackbones.checkpoints.layout import Family, Layout
from mm_vitbackbones.checkpoints.record import BY_OPENMMLAB, Licence, PublishedFile
from mm_vitbackbones.checkpoints.surgery import STEM
from mm_vitbackbones.checkpoints.tables.pvt_common import (
    HUGGINGFACE_BLOCK,
    JOIN_KV,
    OVERLAP_OFFICIAL,
    OVERLAP_OPENMMLAB,
    OVERLAP_OURS,
    has_mit_ratio,
)

HUGGINGFACE = Layout(
    "huggingface",
    marks=("encoder.block.0.0.attention.self.query.weight", "encoder.patch_embeddings.0.proj.weight"),
    keys=KeyMap(
        [
            ("encoder.patch_embeddings.{stage}.proj.", "stages.{stage}.patch_embed.proj."),
            ("encoder.patch_embeddings.{stage}.layer_norm.", "stages.{stage}.patch_embed.norm."),
            *under(
                "encoder.block.{stage}.{block}.",
                "stages.{stage}.blocks.{block}.",
                [
                    *HUGGINGFACE_BLOCK,
                    ("attention.self.sr.", "attn.reduction.conv."),
                    ("mlp.dwconv.dwconv.", "ffn.dwconv."),
                ],
            ),
            ("encoder.layer_norm.{stage}.", "stages.{stage}.norm."),
            ("classifier.", "classifier.head."),
        ]
    ),
    surgery=(JOIN_KV,),
    own_prefix="segformer.",
    besides=("decode_head.",),
)

# What a model of transformers 5 holds; it saves and publishes files in the layout above.
HUGGINGFACE_5 = Layout(
    "huggingface-5",
    marks=("stages.0.blocks.0.attention.q_proj.weight", "stages.0.patch_embeddings.proj.weight"),
    keys=KeyMap(
        [
            *under(
                "stages.{stage}.",
                "stages.{stage}.",
                [
                    ("patch_embeddings.proj.", "patch_embed.proj."),
                    ("patch_embeddings.layer_norm.", "patch_embed.norm."),
                    *under(
                        "blocks.{block}.",
                        "blocks.{block}.",
                        [
                            ("layernorm_before.", "norm1."),
                            ("attention.q_proj.", "attn.q."),
                            ("attention.k_proj.", "attn.k."),
                            ("attention.v_proj.", "attn.v."),
                            ("attention.sequence_reduction.sequence_reduction.", "attn.reduction.conv."),
                            ("attention.sequence_reduction.layer_norm.", "attn.reduction.norm."),
                            ("attention.o_proj.", "attn.proj."),
                            ("layernorm_after.", "norm2."),
                            ("mlp.fc1.", "ffn.fc1."),
                            ("mlp.dwconv.dwconv.", "ffn.dwconv."),
                            ("mlp.fc2.", "ffn.fc2."),
                        ],
                    ),
                    ("layer_norm.", "norm."),
                ],
            ),
            ("classifier.", "classifier.head."),
        ]
    ),
    surgery=(JOIN_KV,),
    own_prefix="segformer.",
    besides=("decode_head.",),
)

FAMILY = Family(
    "MiT",
    layouts=(OVERLAP_OFFICIAL, OVERLAP_OPENMMLAB, HUGGINGFACE, HUGGINGFACE_5, OVERLAP_OURS),
    adapters=(STEM,),
    claims=has_mit_ratio,
    twins=(("b5", "PVTv2 b5"),),
)

SEGFORMER = "https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/segformer"
NVIDIA = Licence("NVIDIA Source Code License", commercial=False)


def _file(arch: str, top1: float, sha256: str) -> PublishedFile:
    url = f"{SEGFORMER}/mit_{arch}_20220624-{sha256}.pth"
    return PublishedFile("MiT", arch, "imagenet1k", url, NVIDIA, BY_OPENMMLAB, top1=top1, sha256=sha256)


# The authors publish theirs on Google Drive, which has no address to download from: these are OpenMMLab's.
FILES = (
    _file("b0", 70.5, "7e0fe6dd"),
    _file("b1", 78.7, "02e5a6a1"),
    _file("b2", 81.6, "66e8bf70"),
    _file("b3", 83.1, "13b1141c"),
    _file("b4", 83.6, "d588d980"),
    _file("b5", 83.8, "658746d9"),
)
