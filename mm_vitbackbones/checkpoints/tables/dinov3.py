"""DINOv3: its weights as published by the authors, and in timm's and Hugging Face's naming."""

from __future__ import annotations

import re

import torch

from mm_vitbackbones.checkpoints.key_map import KeyMap, under
from mm_vitbackbones.checkpoints.layout import Family, Layout, State, Surgery
from mm_vitbackbones.checkpoints.record import BY_AUTHORS, Licence, PublishedFile
from mm_vitbackbones.checkpoints.surgery import rows
from mm_vitbackbones.checkpoints.tables.columnar import (
    CLASS_TOKENS,
    MLP,
    NORMS,
    NOT_TAPPED,
    OUR_NAMES,
    PYRAMID,
    REGISTERS,
    STEM,
)

KEY_BIAS = re.compile(r"(classifier\.)?(blocks\.\d+\.attn)\.(k\.bias|bias_mask)")


def _without_key_bias(state: State) -> State:
    """The bias of the keys and its mask, which make nothing of it, are put aside: keys have no bias here."""
    return {f"classifier.{key}" if KEY_BIAS.fullmatch(key) else key: tensor for key, tensor in state.items()}


def _with_key_bias(state: State) -> State:
    result = {key.removeprefix("classifier.") if KEY_BIAS.fullmatch(key) else key: t for key, t in state.items()}
    for key, bias in state.items():
        if found := re.fullmatch(r"(blocks\.\d+\.attn)\.q\.bias", key):
            zeros = torch.zeros_like(bias)
            result.setdefault(f"{found[1]}.k.bias", zeros)
            result.setdefault(f"{found[1]}.bias_mask", torch.cat((zeros + 1, zeros, zeros + 1)))
    return result


def _by_gate(state: State) -> State:
    """Elsewhere there are the same names for the layers of a network with a gate and of one without."""
    gated = any(".ffn.w1." in key for key in state)
    names = (".ffn.w2.", ".ffn.w3.") if gated else (".ffn.fc1.", ".ffn.fc2.")
    return {key.replace(".ffn.up.", names[0]).replace(".ffn.down.", names[1]): t for key, t in state.items()}


def _second_by_place(state: State) -> State:
    return {re.sub(r"\.ffn\.(w3|fc2)\.", ".ffn.down.", key): t for key, t in state.items()}


def _by_place(state: State) -> State:
    return {re.sub(r"\.ffn\.(w2|fc1)\.", ".ffn.up.", key): t for key, t in _second_by_place(state).items()}


SPLIT_QKV = rows("qkv", (("q", 1), ("k", 1), ("v", 1)))
BLOCK = [*NORMS, ("attn.proj.", "attn.proj."), *MLP]
GATED = [(f"mlp.w{i}.", f"ffn.w{i}.") for i in (1, 2, 3)]

OFFICIAL = Layout(
    "official",
    ("storage_tokens", "blocks.0.attn.qkv.weight", "patch_embed.proj.weight"),
    KeyMap(
        [
            ("patch_embed.proj.", "stem.proj."),
            ("cls_token", CLASS_TOKENS),
            ("storage_tokens", REGISTERS),
            ("rope_embed.periods", "stem.periods"),
            ("mask_token", "classifier.mask_token"),
            *under(
                "blocks.{block}.",
                "blocks.{block}.",
                [
                    *BLOCK,
                    *GATED,
                    ("attn.qkv.weight", "attn.qkv.weight"),
                    ("attn.qkv.bias", "attn.qkv.bias"),
                    ("attn.qkv.bias_mask", "attn.bias_mask"),
                    ("ls1.", "ls1."),
                    ("ls2.", "ls2."),
                ],
            ),
            ("norm.", "norm."),
            ("local_cls_norm.", "classifier.local_cls_norm."),
            ("cls_norm.", "classifier.cls_norm."),
            ("head.", "classifier.head."),
        ]
    ),
    surgery=(SPLIT_QKV, Surgery(_without_key_bias, _with_key_bias)),
)

TIMM = Layout(
    "timm",
    ("reg_token", "blocks.0.attn.qkv.weight", "blocks.0.gamma_1"),
    KeyMap(
        [
            ("patch_embed.proj.", "stem.proj."),
            ("cls_token", CLASS_TOKENS),
            ("reg_token", REGISTERS),
            *under(
                "blocks.{block}.",
                "blocks.{block}.",
                [
                    *BLOCK[:-2],
                    ("mlp.fc1.", "ffn.fc1."),
                    ("mlp.fc1_g.", "ffn.w1."),
                    ("mlp.fc1_x.", "ffn.w2."),
                    ("mlp.fc2.", "ffn.down."),
                    ("attn.qkv.", "attn.qkv."),
                    ("attn.q_bias", "attn.q.bias"),
                    ("attn.v_bias", "attn.v.bias"),
                    ("gamma_1", "ls1.gamma"),
                    ("gamma_2", "ls2.gamma"),
                ],
            ),
            ("norm.", "norm."),
            ("head.", "classifier.head."),
        ]
    ),
    surgery=(SPLIT_QKV, Surgery(_by_gate, _second_by_place)),
)


def _hf(prefix: str) -> KeyMap:
    return KeyMap(
        [
            ("embeddings.patch_embeddings.", "stem.proj."),
            ("embeddings.cls_token", CLASS_TOKENS),
            ("embeddings.register_tokens", REGISTERS),
            ("embeddings.mask_token", "classifier.mask_token"),
            *under(
                prefix,
                "blocks.{block}.",
                [
                    *NORMS,
                    ("attention.q_proj.", "attn.q."),
                    ("attention.k_proj.", "attn.k."),
                    ("attention.v_proj.", "attn.v."),
                    ("attention.o_proj.", "attn.proj."),
                    ("layer_scale1.lambda1", "ls1.gamma"),
                    ("layer_scale2.lambda1", "ls2.gamma"),
                    ("mlp.gate_proj.", "ffn.w1."),
                    ("mlp.up_proj.", "ffn.up."),
                    ("mlp.down_proj.", "ffn.down."),
                ],
            ),
            ("norm.", "norm."),
        ]
    )


HUGGINGFACE = Layout(
    "huggingface",
    ("layer.0.attention.q_proj.weight", "embeddings.register_tokens", "layer.0.layer_scale1.lambda1"),
    _hf("layer.{block}."),
    surgery=(Surgery(_by_gate, _by_place),),
)

# The names of transformers 5.
HUGGINGFACE5 = Layout(
    "huggingface5",
    ("model.layer.0.attention.q_proj.weight", "embeddings.register_tokens", "model.layer.0.layer_scale1.lambda1"),
    _hf("model.layer.{block}."),
    surgery=HUGGINGFACE.surgery,
)

OURS = Layout(
    "ours",
    ("stem.periods", "blocks.0.attn.q.weight"),
    OUR_NAMES,
)

FAMILY = Family(
    "DINOv3",
    layouts=(OFFICIAL, TIMM, HUGGINGFACE, HUGGINGFACE5, OURS),
    adapters=(STEM,),
    # Files in other naming lack the periods, which follow from a formula, and some of them biases that are zero.
    may_be_fresh=(PYRAMID, r"stem\.periods", r"blocks\.\d+\.attn\.[qv]\.bias"),
    level_only=NOT_TAPPED,
)

LVD1689M, SAT493M = "LVD-1689M without labels", "SAT-493M without labels"
DINOV3 = Licence("DINOv3 License")


def _file(arch: str, file: str, data: str = LVD1689M) -> PublishedFile:
    name = data.partition(" ")[0].replace("-", "").lower()
    url = f"https://huggingface.co/facebook/dinov3-{file}-pretrain-{name}"
    return PublishedFile("DINOv3", arch, name, url, DINOV3, BY_AUTHORS, data, size=256, gated=True)


FILES = (
    _file("small", "vits16"),
    _file("small_plus", "vits16plus"),
    _file("base", "vitb16"),
    _file("large", "vitl16"),
    _file("large", "vitl16", SAT493M),
    _file("huge_plus", "vith16plus"),
    _file("7b", "vit7b16"),
    _file("7b", "vit7b16", SAT493M),
)
