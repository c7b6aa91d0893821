"""XCiT: its weights as the authors publish them, of classifiers and of detectors, and as timm and MMPretrain do."""

from __future__ import annotations

import re

from mm_vitbackbones.checkpoints.key_map import KeyMap, under
from mm_vitbackbones.checkpoints.layout import Adapter, Family, Layout, State, Surgery
from mm_vitbackbones.checkpoints.record import (
    APACHE,
    BY_AUTHORS,
    IN1K_TO_ADE20K,
    IN1K_TO_COCO,
    META,
    UNLABELLED,
    PublishedFile,
    size_of,
)
from mm_vitbackbones.checkpoints.surgery import adapt_in_channels, inverse, rows
from mm_vitbackbones.checkpoints.tables.columnar import MLP, NOT_TAPPED, OUR_NAMES, PYRAMID

CONVS = range(4)
"""Of the stem; patches of 8 pixels have three."""
SCALES = [(f"gamma{i}", f"ls{i}.gamma") for i in (1, 2, 3)]
SAME = [(f"{name}.", f"{name}.") for name in ("norm1", "norm2", "norm3", "attn.qkv", "attn.proj")]
SAME.append(("attn.temperature", "attn.temperature"))
LOCAL = [("local_mp.conv1.", "lpi.conv1."), ("local_mp.bn.", "lpi.norm."), ("local_mp.conv2.", "lpi.conv2.")]
STEM_NAMES = [
    pair
    for i in CONVS
    for pair in (
        (f"patch_embed.proj.{2 * i}.0.", f"stem.convs.{i}."),
        (f"patch_embed.proj.{2 * i}.1.", f"stem.norms.{i}."),
    )
]
BLOCKS = under("blocks.{block}.", "blocks.{block}.", [*SAME, *MLP, *LOCAL, *SCALES])
REST = [
    ("norm.", "norm."),
    ("cls_token", "classifier.cls_token"),
    ("cls_attn_blocks.", "classifier.cls_attn_blocks."),
    ("head.", "classifier.head."),
]
LEVELS = [
    ("fpn1.0.", "pyramid.resizes.0.0."),
    ("fpn1.1.", "pyramid.resizes.0.1.norm."),
    ("fpn1.3.", "pyramid.resizes.0.3."),
    ("fpn2.0.", "pyramid.resizes.1.0."),
]
"""Of the authors' detectors and segmentors."""

CLASS_BLOCKS = "classifier.cls_attn_blocks."
_JOIN = inverse(rows("qkv", (("q", 1), ("k", 1), ("v", 1))))


def _in_class_blocks(state: State, step: Surgery, back: bool) -> State:
    inside = {key: tensor for key, tensor in state.items() if key.startswith(CLASS_BLOCKS)}
    changed = (step.to_theirs if back else step.to_ours)(inside)
    return {key: tensor for key, tensor in state.items() if key not in inside} | changed


JOIN_OF_CLASSIFIER = Surgery(
    lambda state: _in_class_blocks(state, _JOIN, back=False),
    lambda state: _in_class_blocks(state, _JOIN, back=True),
)
"""The official class attention has one map for queries, keys and values, and that of others has three."""

OFFICIAL = Layout(
    "official",
    ("pos_embeder.token_projection.weight", "blocks.0.attn.temperature", "patch_embed.proj.0.0.weight"),
    KeyMap(
        [("pos_embeder.token_projection.", "stem.position.proj."), *STEM_NAMES, *BLOCKS, *LEVELS, *REST],
    ),
)

TIMM = Layout(
    "timm",
    ("pos_embed.token_projection.weight", "blocks.0.attn.temperature", "patch_embed.proj.0.0.weight"),
    KeyMap([("pos_embed.token_projection.", "stem.position.proj."), *STEM_NAMES, *BLOCKS, *REST]),
    surgery=(JOIN_OF_CLASSIFIER,),
)


def _mmpretrain_names(text: str) -> str:
    """What a name of the classifier is called there."""
    return re.sub(r"ffn\.layers\.0\.0\.", "mlp.fc1.", re.sub(r"ffn\.layers\.1\.", "mlp.fc2.", text))


def _names_of_mmpretrain(text: str) -> str:
    return text.replace(".mlp.fc1.", ".ffn.layers.0.0.").replace(".mlp.fc2.", ".ffn.layers.1.")


RENAME_CLASSIFIER = Surgery(
    lambda state: {_mmpretrain_names(key) if key.startswith(CLASS_BLOCKS) else key: x for key, x in state.items()},
    lambda state: {_names_of_mmpretrain(key) if key.startswith(CLASS_BLOCKS) else key: x for key, x in state.items()},
)

MMPRETRAIN = Layout(
    "openmmlab",
    ("pos_embed.token_projection.conv.weight", "xca_layers.0.attn.temperature", "patch_embed.proj.0.conv.weight"),
    KeyMap(
        [
            ("pos_embed.token_projection.conv.", "stem.position.proj."),
            *(
                pair
                for i in CONVS
                for pair in (
                    (f"patch_embed.proj.{i}.conv.", f"stem.convs.{i}."),
                    (f"patch_embed.proj.{i}.bn.", f"stem.norms.{i}."),
                )
            ),
            *under(
                "xca_layers.{block}.",
                "blocks.{block}.",
                [
                    *SAME,
                    *SCALES,
                    ("local_mp.conv1.conv.", "lpi.conv1."),
                    ("local_mp.conv1.bn.", "lpi.norm."),
                    ("local_mp.conv2.conv.", "lpi.conv2."),
                    ("ffn.layers.0.0.", "ffn.fc1."),
                    ("ffn.layers.1.", "ffn.fc2."),
                ],
            ),
            ("norm.", "norm."),
            ("cls_token", "classifier.cls_token"),
            ("ca_layers.", CLASS_BLOCKS),
        ]
    ),
    surgery=(RENAME_CLASSIFIER, JOIN_OF_CLASSIFIER),
)

OURS = Layout("ours", ("stem.position.proj.weight", "blocks.0.attn.temperature"), OUR_NAMES)

STEM = Adapter(
    re.compile(r"stem\.convs\.0\.weight"), adapt_in_channels, "adapted from {source[1]} to {target[1]} input channels"
)

FAMILY = Family(
    "XCiT",
    layouts=(OFFICIAL, TIMM, MMPRETRAIN, OURS),
    adapters=(STEM,),
    may_be_fresh=(PYRAMID,),
    level_only=NOT_TAPPED,
)


def _files(arch: str, *top1: float) -> tuple[PublishedFile, ...]:
    """Trained on images of 224 pixels, the same with distillation, and then of 384 pixels, in this order."""
    kinds = zip(("", "_distilled", "_distilled_384"), ("224", "224_dist", "384_dist"), top1, strict=True)
    return tuple(
        PublishedFile(
            "XCiT",
            arch,
            f"imagenet1k{kind}",
            f"{META}/xcit/xcit_{arch}_{file}.pth",
            APACHE,
            BY_AUTHORS,
            size=size_of(kind),
            top1=accuracy,
        )
        for kind, file, accuracy in kinds
    )


def _dino_file(arch: str) -> PublishedFile:
    file = f"dino_xcit_{arch}_pretrain"
    return PublishedFile("XCiT", arch, "dino", f"{META}/dino/{file}/{file}.pth", APACHE, BY_AUTHORS, UNLABELLED)


DENSE = (
    ("coco_mask_rcnn", "coco/maskrcnn", IN1K_TO_COCO, 800),
    ("ade20k_fpn", "ade/sem_fpn", IN1K_TO_ADE20K, 512),
    ("ade20k_upernet", "ade/upernet", IN1K_TO_ADE20K, 512),
)


def _dense_files(arch: str) -> tuple[PublishedFile, ...]:
    """Whole detectors and segmentors, whose backbones have the pyramid."""
    return tuple(
        PublishedFile("XCiT", arch, name, f"{META}/xcit/{file}_xcit_{arch}.pth", APACHE, BY_AUTHORS, data, size)
        for name, file, data, size in DENSE
    )


FILES = (
    *_files("nano_12_p16", 69.9, 72.2, 75.4),
    *_files("tiny_12_p16", 77.1, 78.6, 80.9),
    *_dense_files("tiny_12_p16"),
    *_files("tiny_24_p16", 79.4, 80.4, 82.6),
    *_files("small_12_p16", 82.0, 83.3, 84.7),
    _dino_file("small_12_p16"),
    *_dense_files("small_12_p16"),
    *_files("small_24_p16", 82.6, 83.9, 85.1),
    *_dense_files("small_24_p16"),
    *_files("medium_24_p16", 82.7, 84.3, 85.4),
    _dino_file("medium_24_p16"),
    *_dense_files("medium_24_p16"),
    *_files("large_24_p16", 82.9, 84.9, 85.8),
    *_files("nano_12_p8", 73.8, 76.3, 77.8),
    *_files("tiny_12_p8", 79.7, 81.2, 82.4),
    *_dense_files("tiny_12_p8"),
    *_files("tiny_24_p8", 81.9, 82.6, 83.7),
    *_files("small_12_p8", 83.4, 84.2, 85.1),
    _dino_file("small_12_p8"),
    *_dense_files("small_12_p8"),
    *_files("small_24_p8", 83.9, 84.9, 85.6),
    *_dense_files("small_24_p8"),
    *_files("medium_24_p8", 83.7, 85.1, 85.8),
    _dino_file("medium_24_p8"),
    *_dense_files("medium_24_p8"),
    *_files("large_24_p8", 84.4, 85.4, 86.0),
)
