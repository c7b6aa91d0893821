"""DINOv2: its weights as published by the authors, and in timm's and Hugging Face's naming."""

from __future__ import annotations

import re

import torch

from mm_vitbackbones.checkpoints.key_map import KeyMap, under
from mm_vitbackbones.checkpoints.layout import Family, Layout, State, Surgery
from mm_vitbackbones.checkpoints.record import APACHE, BY_AUTHORS, META, PublishedFile
from mm_vitbackbones.checkpoints.tables.columnar import (
    CLASS_TOKENS,
    MLP,
    NORMS,
    NOT_TAPPED,
    OUR_NAMES,
    POSITION,
    POSITIONS,
    PYRAMID,
    REGISTERS,
    SPLIT_POSITIONS,
    STEM,
    TABLE,
)
from mm_vitbackbones.checkpoints.tables.vit import JOIN_QKV, OF_OTHERS


def _split_gate(state: State) -> State:
    """The rows of the gate, then those of the values -> two weights."""
    result: State = {}
    for key, tensor in state.items():
        if found := re.fullmatch(r"(blocks\.\d+\.ffn)\.w12\.(weight|bias)", key):
            gate, value = tensor.chunk(2)
            result |= {f"{found[1]}.w1.{found[2]}": gate, f"{found[1]}.w2.{found[2]}": value}
        else:
            result[key] = tensor
    return result


def _join_gate(state: State) -> State:
    result: State = {}
    for key, tensor in state.items():
        found = re.fullmatch(r"(blocks\.\d+\.ffn)\.w([12])\.(weight|bias)", key)
        if not found:
            result[key] = tensor
        elif found[2] == "1":
            value = state.get(f"{found[1]}.w2.{found[3]}")
            result[f"{found[1]}.w12.{found[3]}"] = tensor if value is None else torch.cat((tensor, value))
    return result


SPLIT_GATE = Surgery(_split_gate, _join_gate)


def _position_of_class(state: State) -> State:
    """timm, with registers: the class token's position is added to the token."""
    if REGISTERS in state and CLASS_TOKENS in state and POSITIONS not in state:
        return state | {POSITIONS: torch.zeros_like(state[CLASS_TOKENS])}
    return state


def _without_position_of_class(state: State) -> State:
    if REGISTERS not in state or POSITIONS not in state or CLASS_TOKENS not in state:
        return state
    rest = {key: tensor for key, tensor in state.items() if key != POSITIONS}
    return rest | {CLASS_TOKENS: state[CLASS_TOKENS] + state[POSITIONS]}


def _gate_of_fc1(state: State) -> State:
    """timm: a first layer of twice the width that the second takes holds the gate and the values."""
    result: State = {}
    for key, tensor in state.items():
        found = re.fullmatch(r"(blocks\.\d+\.ffn)\.fc([12])\.(weight|bias)", key)
        fc1, fc2 = (state.get(f"{found[1]}.fc{i}.weight") if found else None for i in (1, 2))
        if found and fc1 is not None and fc2 is not None and fc1.shape[0] == 2 * fc2.shape[-1]:
            result[f"{found[1]}.{'w12' if found[2] == '1' else 'w3'}.{found[3]}"] = tensor
        else:
            result[key] = tensor
    return result


def _fc1_of_gate(state: State) -> State:
    return {
        re.sub(r"\.ffn\.w12\.", ".ffn.fc1.", re.sub(r"\.ffn\.w3\.", ".ffn.fc2.", key)): t for key, t in state.items()
    }


STEM_NAMES = [("patch_embed.proj.", "stem.proj."), ("pos_embed", TABLE), ("cls_token", CLASS_TOKENS)]
BLOCK = [
    *NORMS,
    ("attn.qkv.", "attn.qkv."),
    ("attn.proj.", "attn.proj."),
    ("ls1.", "ls1."),
    ("ls2.", "ls2."),
    *MLP,
    ("mlp.w12.", "ffn.w12."),
    ("mlp.w3.", "ffn.w3."),
]
MARKS = ("blocks.0.attn.qkv.weight", "patch_embed.proj.weight", "pos_embed", "blocks.0.ls1.gamma")

OFFICIAL = Layout(
    "official",
    MARKS,
    KeyMap(
        [
            *STEM_NAMES,
            ("register_tokens", REGISTERS),
            ("mask_token", "classifier.mask_token"),
            *under("blocks.{block}.", "blocks.{block}.", BLOCK),
            ("norm.", "norm."),
            ("head.", "classifier.head."),
        ]
    ),
    surgery=(Surgery(_gate_of_fc1, lambda state: state), SPLIT_GATE, SPLIT_POSITIONS),
    without=(*OF_OTHERS, "reg_token"),
)

# timm has the official names for networks without registers, except for the giant's gate.
TIMM = Layout(
    "timm",
    (*MARKS, "reg_token"),
    KeyMap(
        [
            *STEM_NAMES,
            ("reg_token", REGISTERS),
            *under("blocks.{block}.", "blocks.{block}.", BLOCK[:-2]),
            ("norm.", "norm."),
            ("head.", "classifier.head."),
        ]
    ),
    surgery=(
        Surgery(_gate_of_fc1, _fc1_of_gate),
        SPLIT_GATE,
        SPLIT_POSITIONS,
        Surgery(_position_of_class, _without_position_of_class),
    ),
)

HUGGINGFACE = Layout(
    "huggingface",
    ("encoder.layer.0.attention.attention.query.weight", "encoder.layer.0.layer_scale1.lambda1"),
    KeyMap(
        [
            ("embeddings.patch_embeddings.projection.", "stem.proj."),
            ("embeddings.position_embeddings", TABLE),
            ("embeddings.cls_token", CLASS_TOKENS),
            ("embeddings.register_tokens", REGISTERS),
            ("embeddings.mask_token", "classifier.mask_token"),
            *under(
                "encoder.layer.{block}.",
                "blocks.{block}.",
                [
                    *NORMS,
                    ("attention.attention.query.", "attn.q."),
                    ("attention.attention.key.", "attn.k."),
                    ("attention.attention.value.", "attn.v."),
                    ("attention.output.dense.", "attn.proj."),
                    ("layer_scale1.lambda1", "ls1.gamma"),
                    ("layer_scale2.lambda1", "ls2.gamma"),
                    *MLP,
                    ("mlp.weights_in.", "ffn.w12."),
                    ("mlp.weights_out.", "ffn.w3."),
                ],
            ),
            ("layernorm.", "norm."),
        ]
    ),
    surgery=(JOIN_QKV, SPLIT_GATE, SPLIT_POSITIONS),
)

OURS = Layout(
    "ours",
    ("stem.position.table", "blocks.0.attn.qkv.weight", "blocks.0.ls1.gamma"),
    OUR_NAMES,
    without=OF_OTHERS,
)


def _is_dinov2(ours: State) -> bool:
    return REGISTERS in ours or ("blocks.0.ls1.gamma" in ours and POSITIONS in ours)


FAMILY = Family(
    "DINOv2",
    layouts=(OFFICIAL, TIMM, HUGGINGFACE, OURS),
    adapters=(STEM, POSITION),
    may_be_fresh=(PYRAMID,),
    level_only=NOT_TAPPED,
    claims=_is_dinov2,
)

LVD142M = "LVD-142M without labels"


def _file(arch: str) -> PublishedFile:
    name = f"dinov2_vit{arch[0]}14"
    url = f"{META}/dinov2/{name}/{name}{'_reg4' if arch.endswith('_reg') else ''}_pretrain.pth"
    return PublishedFile("DINOv2", arch, "lvd142m", url, APACHE, BY_AUTHORS, LVD142M, size=518)


FILES = (
    _file("small"),
    _file("base"),
    _file("large"),
    _file("giant"),
    _file("small_reg"),
    _file("base_reg"),
    _file("large_reg"),
    _file("giant_reg"),
)
