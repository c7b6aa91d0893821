"""The names and forms that the published files of PVT and its successors have in common."""

from __future__ import annotations

from mm_vitbackbones.checkpoints.key_map import KeyMap, under
from mm_vitbackbones.checkpoints.layout import Layout, State
from mm_vitbackbones.checkpoints.surgery import inverse, pointwise, rows

RELEASES = "https://github.com/whai362/PVT/releases/download/v2"
"""The authors' files of PVT and PVTv2."""

OFFICIAL_BLOCK = [
    ("norm1.", "norm1."),
    ("attn.q.", "attn.q."),
    ("attn.kv.", "attn.kv."),
    ("attn.sr.", "attn.reduction.conv."),
    ("attn.norm.", "attn.reduction.norm."),
    ("attn.proj.", "attn.proj."),
    ("norm2.", "norm2."),
    ("mlp.fc1.", "ffn.fc1."),
    ("mlp.fc2.", "ffn.fc2."),
]

OPENMMLAB_BLOCK = [
    ("norm1.", "norm1."),
    ("attn.attn.in_proj_weight", "attn.qkv.weight"),
    ("attn.attn.in_proj_bias", "attn.qkv.bias"),
    ("attn.attn.out_proj.", "attn.proj."),
    ("attn.sr.", "attn.reduction.conv."),
    ("attn.norm.", "attn.reduction.norm."),
    ("norm2.", "norm2."),
    ("ffn.layers.0.", "ffn.fc1."),
]

HUGGINGFACE_BLOCK = [
    ("layer_norm_1.", "norm1."),
    ("attention.self.query.", "attn.q."),
    ("attention.self.key.", "attn.k."),
    ("attention.self.value.", "attn.v."),
    ("attention.self.layer_norm.", "attn.reduction.norm."),
    ("attention.output.dense.", "attn.proj."),
    ("layer_norm_2.", "norm2."),
    ("mlp.dense1.", "ffn.fc1."),
    ("mlp.dense2.", "ffn.fc2."),
]
"""Of PVT and MiT."""

SPLIT_QKV = rows("qkv", (("q", 1), ("kv", 2)))
"""OpenMMLab: in_proj holds the rows of q, k and v."""

JOIN_KV = inverse(rows("kv", (("k", 1), ("v", 1))))
"""Hugging Face: key and value are two linear layers."""

SQUEEZE_FFN = pointwise(r"stages\.\d+\.blocks\.\d+\.ffn\.fc[12]\.weight")
"""OpenMMLab: the feed-forward network's linear layers are 1x1 convolutions."""

# PVTv2 and MiT: the same modules under the same names.

OVERLAP_OFFICIAL = Layout(
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

OVERLAP_OPENMMLAB = Layout(
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

OVERLAP_OURS = Layout(
    "ours",
    marks=("stages.0.blocks.0.ffn.dwconv.weight", "stages.0.patch_embed.proj.weight"),
    keys=KeyMap([("stages.{stage}.", "stages.{stage}."), ("classifier.", "classifier.")]),
)


def has_mit_ratio(ours: State) -> bool:
    """Whether the first feed-forward network is four times as wide as its grid, as in MiT; in PVTv2 it is eight times
    as wide, except in b5."""
    fc1 = ours.get("stages.0.blocks.0.ffn.fc1.weight")
    return fc1 is not None and fc1.dim() == 2 and fc1.shape[0] == 4 * fc1.shape[1]
