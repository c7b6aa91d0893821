"""Swin: its weights as published by the authors (of classifiers and of detectors), OpenMMLab, Hugging Face and timm."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mm_vitbackbones.checkpoints.key_map import KeyMap, under
from mm_vitbackbones.checkpoints.layout import Adapter, Family, Layout, State, Surgery
from mm_vitbackbones.checkpoints.record import (
    BY_AUTHORS,
    BY_OPENMMLAB,
    IN1K,
    IN22K,
    IN22K_TO_1K,
    MIT_LICENCE,
    PublishedFile,
    size_of,
)
from mm_vitbackbones.checkpoints.surgery import STEM, inverse, resize_table, rows, square_side
from mm_vitbackbones.errors import CheckpointError
from mm_vitbackbones.ops.windows import relative_positions

TABLE = "relative_position_bias_table"
INDEX = "relative_position_index"


def resize_bias(table: Tensor, shape: torch.Size) -> Tensor:
    """A table of biases by relative position ((2w - 1)^2, heads) for windows of another side, bicubically.

    Raises:
        ValueError: if the heads differ too, or the rows are not those of a square window.
    """
    source, target = square_side(table.shape[0]), square_side(shape[0])
    if not source or not target or table.shape[1:] != shape[1:]:
        raise ValueError(f"a bias table {tuple(table.shape)} cannot be resized to {tuple(shape)}")
    shape = torch.Size((1, target, target, table.shape[1]))
    return resize_table(table.view(1, source, source, -1), shape, mode="bicubic").flatten(0, 2)


BIAS = Adapter(
    re.compile(rf"stages\.\d+\.blocks\.\d+\.attn\.{TABLE}"),
    resize_bias,
    "resized from {source[0]} to {target[0]} relative positions",
)


def _index(table: Tensor) -> Tensor | None:
    """The row of the table for each pair of places in a window (n, n), or None for a table of no window."""
    side = square_side(table.shape[0])
    if side is None or side % 2 == 0:
        return None
    places = ((side + 1) // 2) ** 2
    return relative_positions((side + 1) // 2, torch.device("cpu")).view(places, places)


def _drop_index(state: State) -> State:
    """Leaves the stored indices out: they follow from the window's size."""
    for key in [key for key in state if key.endswith(f".{INDEX}")]:
        table = state.get(key.replace(INDEX, TABLE))
        expected = None if table is None else _index(table)
        if expected is not None and not torch.equal(state[key].long().cpu(), expected):
            raise CheckpointError(f"{key} is not that of square windows, row by row: no Swin Transformer reads it so")
    return {key: tensor for key, tensor in state.items() if not key.endswith(f".{INDEX}")}


def _add_index(state: State) -> State:
    result: State = {}
    for key, tensor in state.items():
        result[key] = tensor
        if BIAS.key.fullmatch(key) and (index := _index(tensor)) is not None:
            result[key.replace(TABLE, INDEX)] = index
    return result


STORED_INDEX = Surgery(_drop_index, _add_index)

MERGING = re.compile(r"stages\.[1-9]\d*\.patch_embed\.(norm\.weight|norm\.bias|reduction\.weight)")
NEIGHBOURS = [0, 2, 1, 3]
"""OpenMMLab's order of a 2x2 patch (along the rows first) in the official one (along the columns first), and back."""


def _reorder(reorder: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    def fits(key: str, tensor: Tensor) -> bool:
        return MERGING.fullmatch(key) is not None and tensor.dim() > 0 and tensor.shape[-1] % 4 == 0

    return lambda state: {key: reorder(tensor) if fits(key, tensor) else tensor for key, tensor in state.items()}


def _neighbours_first(tensor: Tensor) -> Tensor:
    """(..., C * 4) of channels, each with its 2x2 neighbours -> (..., 4 * C), the official order."""
    return tensor.unflatten(-1, (-1, 4)).transpose(-1, -2)[..., NEIGHBOURS, :].flatten(-2)


def _channels_first(tensor: Tensor) -> Tensor:
    return tensor.unflatten(-1, (4, -1))[..., NEIGHBOURS, :].transpose(-1, -2).flatten(-2)


MERGING_ORDER = Surgery(_reorder(_neighbours_first), _reorder(_channels_first))
"""OpenMMLab gathers the four neighbours of a merged patch channel by channel."""

SPLIT_QKV = inverse(rows("qkv", (("q", 1), ("k", 1), ("v", 1))))
"""Hugging Face: query, key and value are three linear layers."""

Pairs = Sequence[tuple[str, str]]

OFFICIAL_BLOCK: Pairs = [
    ("norm1.", "norm1."),
    ("attn.", "attn."),
    ("norm2.", "norm2."),
    ("mlp.fc1.", "ffn.fc1."),
    ("mlp.fc2.", "ffn.fc2."),
]

# A detector's files have the norms of the levels; a classifier's have one norm and a head, and the masks for its size.
OFFICIAL = Layout(
    "official",
    marks=(f"layers.0.blocks.0.attn.{TABLE}", "layers.0.downsample.reduction.weight"),
    keys=KeyMap(
        [
            ("patch_embed.", "stages.0.patch_embed."),
            ("layers.{stage}.downsample.", "stages.{stage+1}.patch_embed."),
            *under("layers.{stage}.blocks.{block}.", "stages.{stage}.blocks.{block}.", OFFICIAL_BLOCK),
            ("norm{stage}.", "stages.{stage}.norm."),
            ("layers.{stage}.blocks.{block}.attn_mask", "classifier.stages.{stage}.blocks.{block}.attn_mask"),
            ("norm.", "classifier.norm."),
            ("head.", "classifier.head."),
        ]
    ),
    surgery=(STORED_INDEX,),
)

OPENMMLAB = Layout(
    "openmmlab",
    marks=(f"stages.0.blocks.0.attn.w_msa.{TABLE}", "patch_embed.projection.weight"),
    keys=KeyMap(
        [
            ("patch_embed.projection.", "stages.0.patch_embed.proj."),
            ("patch_embed.norm.", "stages.0.patch_embed.norm."),
            ("stages.{stage}.downsample.", "stages.{stage+1}.patch_embed."),
            *under(
                "stages.{stage}.blocks.{block}.",
                "stages.{stage}.blocks.{block}.",
                [
                    ("norm1.", "norm1."),
                    ("attn.w_msa.", "attn."),
                    ("norm2.", "norm2."),
                    ("ffn.layers.0.0.", "ffn.fc1."),
                    ("ffn.layers.1.", "ffn.fc2."),
                ],
            ),
            ("norm{stage}.", "stages.{stage}.norm."),
        ]
    ),
    surgery=(MERGING_ORDER, STORED_INDEX),
)


def _huggingface(name: str, query: str, attention: Pairs, feed_forward: Pairs, surgery: tuple[Surgery, ...]) -> Layout:
    """Hugging Face's names, of which those inside a block differ between the versions of its library."""
    return Layout(
        name,
        marks=(f"encoder.layers.0.blocks.0.attention.{query}.weight", "embeddings.patch_embeddings.projection.weight"),
        keys=KeyMap(
            [
                ("embeddings.patch_embeddings.projection.", "stages.0.patch_embed.proj."),
                ("embeddings.norm.", "stages.0.patch_embed.norm."),
                ("encoder.layers.{stage}.downsample.", "stages.{stage+1}.patch_embed."),
                *under(
                    "encoder.layers.{stage}.blocks.{block}.",
                    "stages.{stage}.blocks.{block}.",
                    [
                        ("layernorm_before.", "norm1."),
                        *under("attention.", "attn.", attention),
                        ("layernorm_after.", "norm2."),
                        *feed_forward,
                    ],
                ),
                ("hidden_states_norms.stage{stage+1}.", "stages.{stage}.norm."),
                ("layernorm.", "classifier.norm."),
                ("classifier.", "classifier.head."),
            ]
        ),
        surgery=surgery,
        own_prefix="swin.",
    )


HUGGINGFACE = _huggingface(
    "huggingface",
    "self.query",
    attention=[
        ("self.query.", "q."),
        ("self.key.", "k."),
        ("self.value.", "v."),
        (f"self.{TABLE}", TABLE),
        (f"self.{INDEX}", INDEX),
        ("output.dense.", "proj."),
    ],
    feed_forward=[("intermediate.dense.", "ffn.fc1."), ("output.dense.", "ffn.fc2.")],
    surgery=(SPLIT_QKV, STORED_INDEX),
)

HUGGINGFACE_5 = _huggingface(
    "huggingface-5",
    "q_proj",
    attention=[
        ("q_proj.", "q."),
        ("k_proj.", "k."),
        ("v_proj.", "v."),
        (f"relative_position_bias.{TABLE}", TABLE),
        ("o_proj.", "proj."),
    ],
    feed_forward=[("mlp.fc1.", "ffn.fc1."), ("mlp.fc2.", "ffn.fc2.")],
    surgery=(SPLIT_QKV,),
)


def _timm(name: str, stages: str, mark: str) -> Layout:
    """timm's names. Merging comes before a stage, as in our layout, instead of after it. There are no norms of levels.

    Args:
        stages: the beginning of a stage's name, without its number.
        mark: a second key that every file has.
    """
    return Layout(
        name,
        marks=(f"{stages}0.blocks.0.attn.{TABLE}", mark),
        keys=KeyMap(
            [
                ("patch_embed.", "stages.0.patch_embed."),
                (f"{stages}{{later+1}}.downsample.", "stages.{later+1}.patch_embed."),
                *under(f"{stages}{{stage}}.blocks.{{block}}.", "stages.{stage}.blocks.{block}.", OFFICIAL_BLOCK),
                ("norm.", "classifier.norm."),
                ("head.fc.", "classifier.head."),
            ]
        ),
    )


TIMM = _timm("timm", "layers.", "layers.3.downsample.reduction.weight")
TIMM_FEATURES = _timm("timm-features", "layers_", "patch_embed.proj.weight")

OURS = Layout(
    "ours",
    marks=(f"stages.0.blocks.0.attn.{TABLE}", "stages.0.patch_embed.proj.weight"),
    keys=KeyMap([("stages.{stage}.", "stages.{stage}."), ("classifier.", "classifier.")]),
)

FAMILY = Family(
    "Swin",
    layouts=(OFFICIAL, OPENMMLAB, HUGGINGFACE, HUGGINGFACE_5, TIMM, TIMM_FEATURES, OURS),
    adapters=(STEM, BIAS),
    may_be_fresh=(r"stages\.\d+\.norm\.(weight|bias)",),
)

RELEASES = "https://github.com/SwinTransformer/storage/releases/download"
CONVERTED = "https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/swin"


def _file(arch: str, name: str, file: str, top1: float | None, release: str = "v1.0.0") -> PublishedFile:
    url = f"{RELEASES}/{release}/swin_{file}.pth"
    return PublishedFile("Swin", arch, name, url, MIT_LICENCE, BY_AUTHORS, _data(name), size_of(name), top1)


def _openmmlab_file(arch: str, name: str, file: str, sha256: str, top1: float | None) -> PublishedFile:
    url = f"{CONVERTED}/swin_{file}-{sha256}.pth"
    name = f"{name}_openmmlab"
    return PublishedFile("Swin", arch, name, url, MIT_LICENCE, BY_OPENMMLAB, _data(name), size_of(name), top1, sha256)


def _data(name: str) -> str:
    return IN22K_TO_1K if "to_1k" in name else IN22K if "22k" in name else IN1K


FILES = (
    _file("tiny", "imagenet1k", "tiny_patch4_window7_224", 81.2),
    _file("tiny", "imagenet22k", "tiny_patch4_window7_224_22k", None, "v1.0.8"),
    _file("tiny", "imagenet22k_to_1k", "tiny_patch4_window7_224_22kto1k_finetune", 80.9, "v1.0.8"),
    _openmmlab_file("tiny", "imagenet1k", "tiny_patch4_window7_224_20220317", "1cdeb081", 81.2),
    _file("small", "imagenet1k", "small_patch4_window7_224", 83.2),
    _file("small", "imagenet22k", "small_patch4_window7_224_22k", None, "v1.0.8"),
    _file("small", "imagenet22k_to_1k", "small_patch4_window7_224_22kto1k_finetune", 83.2, "v1.0.8"),
    _openmmlab_file("small", "imagenet1k", "small_patch4_window7_224_20220317", "7ba6d6dd", 83.2),
    _file("base", "imagenet1k", "base_patch4_window7_224", 83.5),
    _file("base", "imagenet22k", "base_patch4_window7_224_22k", None),
    _file("base", "imagenet22k_to_1k", "base_patch4_window7_224_22kto1k", 85.2),
    _openmmlab_file("base", "imagenet1k", "base_patch4_window7_224_20220317", "e9b98025", 83.5),
    _openmmlab_file("base", "imagenet22k", "base_patch4_window7_224_22k_20220317", "4f79f7c0", None),
    _file("large", "imagenet22k", "large_patch4_window7_224_22k", None),
    _file("large", "imagenet22k_to_1k", "large_patch4_window7_224_22kto1k", 86.3),
    _openmmlab_file("large", "imagenet22k", "large_patch4_window7_224_22k_20220412", "aeecf2aa", None),
    _file("base_w12", "imagenet1k_384", "base_patch4_window12_384", 84.5),
    _file("base_w12", "imagenet22k_384", "base_patch4_window12_384_22k", None),
    _file("base_w12", "imagenet22k_to_1k_384", "base_patch4_window12_384_22kto1k", 86.4),
    _openmmlab_file("base_w12", "imagenet1k_384", "base_patch4_window12_384_20220317", "55b0104a", 84.5),
    _openmmlab_file("base_w12", "imagenet22k_384", "base_patch4_window12_384_22k_20220317", "e5c09f74", None),
    _file("large_w12", "imagenet22k_384", "large_patch4_window12_384_22k", None),
    _file("large_w12", "imagenet22k_to_1k_384", "large_patch4_window12_384_22kto1k", 87.3),
    _openmmlab_file("large_w12", "imagenet22k_384", "large_patch4_window12_384_22k_20220412", "6580f57d", None),
)
