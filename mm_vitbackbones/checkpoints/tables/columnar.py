"""The names and forms that the published files of ViT, DINOv2 and DINOv3 have in common."""

from __future__ import annotations

import math
import re
from functools import partial

import torch

from mm_vitbackbones.checkpoints.key_map import KeyMap
from mm_vitbackbones.checkpoints.layout import Adapter, State, Surgery
from mm_vitbackbones.checkpoints.surgery import adapt_patches, resize_table

TABLE, POSITIONS = "stem.position.table", "stem.token_positions"
CLASS_TOKENS, REGISTERS = "stem.class_tokens", "stem.registers"

STEM = Adapter(
    re.compile(r"stem\.proj\.weight"),
    adapt_patches,
    "adapted from {source[1]} channels and patches of {source[2]} pixels to {target[1]} and {target[2]}",
)
POSITION = Adapter(
    re.compile(re.escape(TABLE)),
    partial(resize_table, mode="bicubic"),
    "resized from {source[1]}x{source[2]} to {target[1]}x{target[2]}",
)

OUR_NAMES = KeyMap([(f"{name}.", f"{name}.") for name in ("stem", "blocks", "norm", "pyramid", "classifier")])

MLP = [("mlp.fc1.", "ffn.fc1."), ("mlp.fc2.", "ffn.fc2.")]
NORMS = [("norm1.", "norm1."), ("norm2.", "norm2.")]

NOT_TAPPED = (r"norm\..+",)
"""The final norm, which a backbone without ``final_norm`` has not."""
PYRAMID = r"pyramid\..+"


def _split_positions(state: State) -> State:
    """(1, T + g * g, C) -> those of T tokens (1, T, C), if there are any, and a table (1, g, g, C)."""
    table = state.get(TABLE)
    if table is None or table.dim() != 3:
        return state
    count = table.shape[1]
    side = math.isqrt(count)
    tokens, grid = table.split((count - side * side, side * side), dim=1)
    state = {key: tensor for key, tensor in state.items() if key != TABLE}
    return state | {TABLE: grid.unflatten(1, (side, side))} | ({POSITIONS: tokens} if tokens.shape[1] else {})


def _join_positions(state: State) -> State:
    table = state.get(TABLE)
    if table is None or table.dim() != 4:
        return state
    first = [state[POSITIONS]] if POSITIONS in state else []
    state = {key: tensor for key, tensor in state.items() if key != POSITIONS}
    return state | {TABLE: torch.cat((*first, table.flatten(1, 2)), dim=1)}


SPLIT_POSITIONS = Surgery(_split_positions, _join_positions)
"""One table holds the positions of class tokens and patches."""
