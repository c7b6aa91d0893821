"""What the published files of PVT and of its successors name and store alike."""

from __future__ import annotations

from mm_vitbackbones.checkpoints.surgery import inverse, pointwise, rows

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

SPLIT_QKV = rows("qkv", (("q", 1), ("kv", 2)))
"""OpenMMLab: in_proj holds the rows of q, k and v."""

JOIN_KV = inverse(rows("kv", (("k", 1), ("v", 1))))
"""Hugging Face: key and value are two linear layers."""

SQUEEZE_FFN = pointwise(r"stages\.\d+\.blocks\.\d+\.ffn\.fc[12]\.weight")
"""OpenMMLab: the feed-forward network's linear layers are 1x1 convolutions."""
