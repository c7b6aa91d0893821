"""Pool: its weights as published by the authors."""

from __future__ import annotations

from mm_vitbackbones.checkpoints.key_map import KeyMap, under
from mm_vitbackbones.checkpoints.layout import Family, Layout
from mm_vitbackbones.checkpoints.record import APACHE, BY_AUTHORS, PublishedFile
from mm_vitbackbones.checkpoints.surgery import STEM

OFFICIAL = Layout(
    "official",
    marks=("layer1.0.mixer.mix.weight",),
    keys=KeyMap(
        [
            ("embed{stage+1}.", "stages.{stage}.patch_embed."),
            *under(
                "layer{stage+1}.{block}.",
                "stages.{stage}.blocks.{block}.",
                [("norm1.", "norm1."), ("mixer.", "attn."), ("norm2.", "norm2."), ("mlp.", "ffn.")],
            ),
            ("norm{stage+1}.", "stages.{stage}.norm."),
            ("head.", "classifier.head."),
        ]
    ),
)

OURS = Layout(
    "ours",
    marks=("stages.0.blocks.0.attn.mix.weight",),
    keys=KeyMap([("stages.{stage}.", "stages.{stage}."), ("classifier.", "classifier.")]),
)

FAMILY = Family("Pool", layouts=(OFFICIAL, OURS), adapters=(STEM,))

FILES = (
    PublishedFile("Pool", "tiny", "imagenet1k", "https://example.org/pool_tiny.pth", APACHE, BY_AUTHORS, top1=71.5),
)
