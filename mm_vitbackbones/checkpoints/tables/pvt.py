"""PVT: its weights as published by the authors, OpenMMLab and Hugging Face."""

from __future__ import annotations

import re

import torch

from mm_vitbackbones.checkpoints.key_map import KeyMap, under
from mm_vitbackbones.checkpoints.layout import Adapter, Family, Layout, State, Surgery
from mm_vitbackbones.checkpoints.record import APACHE, BY_AUTHORS, PublishedFile
from mm_vitbackbones.checkpoints.surgery import STEM, resize_table, square_side
from mm_vitbackbones.checkpoints.tables.pvt_common import (
    HUGGINGFACE_BLOCK,
    JOIN_KV,
    OFFICIAL_BLOCK,
    OPENMMLAB_BLOCK,
    RELEASES,
    SPLIT_QKV,
    SQUEEZE_FFN,
)
from mm_vitbackbones.errors import CheckpointError

CLASS_POSITION = "classifier.token_position"


POSITION = Adapter(
    re.compile(r"stages\.\d+\.position\.table"),
    resize_table,
    "resized from {source[1]}x{source[2]} to {target[1]}x{target[2]}",
)


def _split_class_position(state: State) -> State:
    """The table (1, 1 + N, C) of the stage with the class token becomes (1, N, C) and the class row (1, 1, C)."""
    result: State = {}
    for key, tensor in state.items():
        has_class = POSITION.key.fullmatch(key) and tensor.dim() == 3 and square_side(tensor.shape[1]) is None
        if has_class and square_side(tensor.shape[1] - 1) is not None and CLASS_POSITION not in result:
            result[key], result[CLASS_POSITION] = tensor[:, 1:], tensor[:, :1]
        else:
            result[key] = tensor
    return result


def _join_class_position(state: State) -> State:
    last = max((key for key in state if POSITION.key.fullmatch(key)), default=None)
    if last is None or CLASS_POSITION not in state:
        return state
    joined = torch.cat((state[CLASS_POSITION], state[last]), dim=1)
    return {key: joined if key == last else t for key, t in state.items() if key != CLASS_POSITION}


def _unflatten_position(state: State) -> State:
    """(1, H * W, C) -> (1, H, W, C); these layouts store no grid shape, so the grids have to be square."""
    result = dict(state)
    for key in filter(POSITION.key.fullmatch, state):
        shape = tuple(state[key].shape)
        if len(shape) != 3 or (side := square_side(shape[1])) is None:
            raise CheckpointError(
                f"the position table of {key.removesuffix('.position.table')} has the shape {shape}: expected "
                "(1, H * W, C) of a square grid, as this layout does not say which other grid it would be"
            )
        result[key] = state[key].unflatten(1, (side, side))
    return result


def _flatten_position(state: State) -> State:
    return {key: t.flatten(1, 2) if POSITION.key.fullmatch(key) else t for key, t in state.items()}


CLASS_ROW = Surgery(_split_class_position, _join_class_position)
GRID = Surgery(_unflatten_position, _flatten_position)

OFFICIAL = Layout(
    "official",
    marks=("pos_embed1", "block1.0.attn.q.weight"),
    keys=KeyMap(
        [
            ("pos_embed{stage+1}", "stages.{stage}.position.table"),
            ("patch_embed{stage+1}.", "stages.{stage}.patch_embed."),
            *under("block{stage+1}.{block}.", "stages.{stage}.blocks.{block}.", OFFICIAL_BLOCK),
            ("cls_token", "classifier.token"),
            ("norm.", "classifier.norm."),
            ("head.", "classifier.head."),
        ]
    ),
    surgery=(CLASS_ROW, GRID),
)

# Index 1 of a stage lists the position table and then the blocks. There is no room for a class token's position.
OPENMMLAB = Layout(
    "openmmlab",
    marks=("layers.0.1.0.pos_embed", "layers.0.1.1.attn.attn.in_proj_weight"),
    keys=KeyMap(
        [
            ("layers.{stage}.0.projection.", "stages.{stage}.patch_embed.proj."),
            ("layers.{stage}.0.norm.", "stages.{stage}.patch_embed.norm."),
            ("layers.{stage}.1.0.pos_embed", "stages.{stage}.position.table"),
            *under(
                "layers.{stage}.1.{block+1}.",
                "stages.{stage}.blocks.{block}.",
                [*OPENMMLAB_BLOCK, ("ffn.layers.3.", "ffn.fc2.")],
            ),
        ]
    ),
    surgery=(SPLIT_QKV, SQUEEZE_FFN, GRID),
)

HUGGINGFACE = Layout(
    "huggingface",
    marks=(
        "encoder.patch_embeddings.0.position_embeddings",
        "encoder.block.0.0.attention.self.query.weight",
    ),
    keys=KeyMap(
        [
            ("encoder.patch_embeddings.{stage}.position_embeddings", "stages.{stage}.position.table"),
            ("encoder.patch_embeddings.{stage}.projection.", "stages.{stage}.patch_embed.proj."),
            ("encoder.patch_embeddings.{stage}.layer_norm.", "stages.{stage}.patch_embed.norm."),
            *under(
                "encoder.block.{stage}.{block}.",
                "stages.{stage}.blocks.{block}.",
                [*HUGGINGFACE_BLOCK, ("attention.self.sequence_reduction.", "attn.reduction.conv.")],
            ),
            ("encoder.patch_embeddings.3.cls_token", "classifier.token"),
            ("encoder.layer_norm.", "classifier.norm."),
            ("classifier.", "classifier.head."),
        ]
    ),
    surgery=(JOIN_KV, CLASS_ROW, GRID),
    own_prefix="pvt.",
)

OURS = Layout(
    "ours",
    marks=("stages.0.position.table", "stages.0.blocks.0.attn.q.weight", "stages.0.patch_embed.proj.weight"),
    keys=KeyMap([("stages.{stage}.", "stages.{stage}."), ("classifier.", "classifier.")]),
)

FAMILY = Family("PVT", layouts=(OFFICIAL, OPENMMLAB, HUGGINGFACE, OURS), adapters=(STEM, POSITION))


def _file(arch: str, top1: float) -> PublishedFile:
    return PublishedFile("PVT", arch, "imagenet1k", f"{RELEASES}/pvt_{arch}.pth", APACHE, BY_AUTHORS, top1=top1)


FILES = (
    _file("tiny", 75.1),
    _file("small", 79.8),
    _file("medium", 81.2),
    _file("large", 81.7),
)
