"""PVTv2: its weights as published by the authors, OpenMMLab, Hugging Face and timm."""

from __future__ import annotations

from mm_vitbackbones.checkpoints.key_map import KeyMap, under
from mm_vitbackbones.checkpoints.layout import Family, Layout
from mm_vitbackbones.checkpoints.pvt_common import JOIN_KV, OFFICIAL_BLOCK, OPENMMLAB_BLOCK, SPLIT_QKV, SQUEEZE_FFN
from mm_vitbackbones.checkpoints.surgery import STEM

OFFICIAL = Layout(
    "official",
    marks=("block1.0.mlp.dwconv.dwconv.weight", "patch_embed1.proj.weight"),
    keys=KeyMap(
        [
            ("patch_embed{stage+1}.", "stages.{stage}.patch_embed."),
            *under(
                "block{stage+1}.{block}.",
                "stages.{stage}.blocks.{block}.",
                [*OFFICIAL_BLOCK, ("mlp.dwconv.dwconv.", "ffn.dwconv.")],
            ),
            ("norm{stage+1}.", "stages.{stage}.norm."),
            ("head.", "classifier.head."),
        ]
    ),
)

OPENMMLAB = Layout(
    "openmmlab",
    marks=("layers.0.1.0.attn.attn.in_proj_weight", "layers.0.0.projection.weight"),
    keys=KeyMap(
        [
            ("layers.{stage}.0.projection.", "stages.{stage}.patch_embed.proj."),
            ("layers.{stage}.0.norm.", "stages.{stage}.patch_embed.norm."),
            *under(
                "layers.{stage}.1.{block}.",
                "stages.{stage}.blocks.{block}.",
                [*OPENMMLAB_BLOCK, ("ffn.layers.1.", "ffn.dwconv."), ("ffn.layers.4.", "ffn.fc2.")],
            ),
            ("layers.{stage}.2.", "stages.{stage}.norm."),
        ]
    ),
    surgery=(SPLIT_QKV, SQUEEZE_FFN),
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

# The first patch embedding stands outside of the stages; those of the later stages are their downsampling.
TIMM = Layout(
    "timm",
    marks=("stages.0.blocks.0.attn.q.weight", "patch_embed.proj.weight"),
    keys=KeyMap(
        [
            ("patch_embed.", "stages.0.patch_embed."),
            ("stages.{later+1}.downsample.", "stages.{later+1}.patch_embed."),
            *under(
                "stages.{stage}.blocks.{block}.",
                "stages.{stage}.blocks.{block}.",
                [*OFFICIAL_BLOCK, ("mlp.dwconv.", "ffn.dwconv.")],
            ),
            ("stages.{stage}.norm.", "stages.{stage}.norm."),
            ("head.", "classifier.head."),
        ]
    ),
)

OURS = Layout(
    "ours",
    marks=("stages.0.blocks.0.ffn.dwconv.weight", "stages.0.patch_embed.proj.weight"),
    keys=KeyMap([("stages.{stage}.", "stages.{stage}."), ("classifier.", "classifier.")]),
)

FAMILY = Family(
    "PVTv2",
    layouts=(OFFICIAL, OPENMMLAB, HUGGINGFACE, TIMM, OURS),
    adapters=(STEM,),
    twins=(("b5", "MiT b5"),),
    cautions=(
        ("openmmlab", "b2_li", "OpenMMLab's PVTv2 has no linear attention: no module of theirs takes this file"),
    ),
)
