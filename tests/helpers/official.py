"""The official networks' recorded numbers, and names for weights: what parity tests compare with."""

from __future__ import annotations

import json
import math
import re
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from helpers.paths import DATA
from mm_vitbackbones.backbones import PVT, Backbone, CoaT, MiT, PiT, PVTv2, Swin

SPEC = {
    "depths": (2, 1, 1, 1),
    "dims": (8, 16, 20, 32),
    "num_heads": (1, 2, 5, 8),
    "reductions": (8, 4, 2, 1),
    "mlp_ratios": (8, 8, 4, 4),
}
COAT = {"depths": (1, 1, 1, 1), "dims": (16, 24, 24, 24), "mlp_ratios": (4, 4, 4, 4), "parallel_depth": 2}
TOYS = {
    "pvt": (PVT, SPEC | {"pretrain_grid": 16}),
    "pvt_v2": (PVTv2, SPEC),
    "pvt_v2_linear": (PVTv2, SPEC | {"linear": True}),
    "mit": (MiT, SPEC | {"mlp_ratios": (4, 4, 4, 4)}),
    "pit": (PiT, {"depths": (1, 2, 1), "dims": (8, 16, 32), "num_heads": (2, 4, 8), "pretrain_grid": 7}),
    "swin": (Swin, {"depths": (2, 2, 2, 2), "dims": (8, 16, 32, 64), "num_heads": (1, 2, 2, 4)}),
    "coat": (CoaT, COAT),
    "coat_lite": (CoaT, {"depths": (1, 2, 1, 1), "dims": (16, 16, 24, 32)}),
}
"""The class and the spec of each recorded network."""


@dataclass(frozen=True)
class Fixture:
    """A toy-size official network at random weights, its inputs and its features."""

    arch: dict
    state: dict[str, Tensor]
    inputs: list[Tensor]
    features: list[list[Tensor]]


def load_fixture(name: str) -> Fixture:
    with np.load(DATA / f"{name}.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "arch"}
        arch = json.loads(str(file["arch"]))
    runs = range(sum(key.startswith("input") for key in arrays))
    levels = range(sum(key.startswith("feature0_") for key in arrays))
    return Fixture(
        arch,
        {key.removeprefix("state/"): value for key, value in arrays.items() if key.startswith("state/")},
        [arrays[f"input{i}"] for i in runs],
        [[arrays[f"feature{i}_{level}"] for level in levels] for i in runs],
    )


def build_toy(fixture: Fixture) -> Backbone:
    """Our network of the fixture's size."""
    if "base_dims" in fixture.arch:
        return build_toy_pit(fixture)
    if "window_size" in fixture.arch:
        spec = {key: fixture.arch[key] for key in ("depths", "num_heads", "window_size")}
        return Swin(arch=spec | {"dims": [fixture.arch["embed_dim"] * 2**i for i in range(4)]}, drop_path_rate=0.0)
    if "serial_depths" in fixture.arch:
        ours = {"embed_dims": "dims", "serial_depths": "depths", "mlp_ratios": "mlp_ratios"}
        spec = {ours[key]: fixture.arch[key] for key in ours} | {"parallel_depth": fixture.arch["parallel_depth"]}
        return CoaT(arch=spec)
    ours = {"embed_dims": "dims", "num_heads": "num_heads", "depths": "depths", "mlp_ratios": "mlp_ratios"}
    spec = {ours[key]: fixture.arch[key] for key in ours} | {"reductions": fixture.arch["sr_ratios"]}
    if "pretrain_img_size" in fixture.arch:
        return PVT(arch=spec | {"pretrain_grid": fixture.arch["pretrain_img_size"] // 4}, drop_path_rate=0.0)
    if "linear" in fixture.arch:
        return PVTv2(arch=spec | {"linear": fixture.arch["linear"]}, drop_path_rate=0.0)
    return MiT(arch=spec, drop_path_rate=0.0)


def official_state(toy: str) -> dict[str, Tensor]:
    """The recorded network's weights, with what a classifier's file holds beside them."""
    state, width = load_fixture(toy).state, TOYS[toy][1]["dims"][-1]
    state |= {"head.weight": torch.randn(10, width), "head.bias": torch.randn(10)}
    if toy == "pvt":
        state |= {"cls_token": torch.randn(1, 1, width)}
    if toy in ("pvt", "swin"):
        state |= {"norm.weight": torch.randn(width), "norm.bias": torch.ones(width)}
    if toy == "pit":
        state |= {"head_dist.weight": torch.randn(10, width), "head_dist.bias": torch.randn(10)}
    if toy == "swin":
        state |= {"layers.0.blocks.1.attn_mask": torch.zeros(9, 49, 49)}
    if toy.startswith("coat"):
        state |= coat_classifier(state)
    return state


def coat_classifier(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a classifier's file holds beside a dense CoaT's tensors, and its head: norms, used or not, and with parallel
    blocks the weights of their class tokens."""
    norms = {f"norm{i}": torch.randn(2, state[f"cls_token{i}"].shape[-1]) for i in (1, 2, 3, 4)}
    tensors = {f"{name}.{part}": norms[name][i] for name in norms for i, part in enumerate(("weight", "bias"))}
    if "parallel_blocks.0.norm12.weight" in state:
        tensors |= {"aggregate.weight": torch.randn(1, 3, 1), "aggregate.bias": torch.randn(1)}
    return tensors


def published_names(family: str) -> dict[tuple[str, str], dict[str, Tensor]]:
    """By arch and layout, the names of a family's published weights, with tensors that have a shape and no values."""
    lists: dict[tuple[str, str], dict[str, Tensor]] = {}
    for line in (DATA / f"{family}_names.txt").read_text().splitlines():
        if line.startswith("["):
            arch, layout = line.strip("[]").split()
            tensors = lists[arch, layout] = {}
        elif line and not line.startswith("#"):
            name, _, size = line.partition(" ")
            blocks = re.search(r"\{(\d+)\}", name)
            for number in range(int(blocks[1]) if blocks else 1):
                whole = name.replace(blocks[0], str(number)) if blocks else name
                tensors[whole] = torch.empty([int(side) for side in size.split("x")], device="meta")
    return lists


def build_toy_pit(fixture: Fixture, **kwargs) -> PiT:
    """PiT of the fixture's size, in the published geometry unless told otherwise."""
    arch = fixture.arch
    spec = dict(
        dims=tuple(dim * heads for dim, heads in zip(arch["base_dims"], arch["heads"], strict=True)),
        num_heads=arch["heads"],
        depths=arch["depth"],
        patch_size=arch["patch_size"],
        patch_stride=arch["stride"],
        pretrain_grid=(arch["image_size"] - arch["patch_size"]) // arch["stride"] + 1,
    )
    return PiT(**dict(arch=spec, stem="published", out_indices=(1, 2, 3), drop_path_rate=0.0) | kwargs)


def published_shapes(family: str) -> dict[str, dict[str, tuple[int, ...]]]:
    """For each arch, the names and shapes of all tensors in its official file: ``data/<family>_keys.txt``."""
    archs: dict[str, dict[str, tuple[int, ...]]] = {}
    for line in (DATA / f"{family}_keys.txt").read_text().splitlines():
        if line.startswith("["):
            shapes = archs.setdefault(line[1:-1], {})
        elif not line.startswith("#"):
            name, shape = line.split()
            before, last, after = re.fullmatch(r"(.*?)(?:\{0-(\d+)\}(.*))?", name).groups()
            numbers = [""] if last is None else range(int(last) + 1)
            shapes |= {f"{before}{i}{after or ''}": tuple(map(int, shape.split("x"))) for i in numbers}
    return archs


def pseudo_random(name: str, count: int) -> np.ndarray:
    """``count`` numbers in [0, 1) that depend on the name alone: the golden values were made with these."""
    phase = zlib.crc32(name.encode()) % 10007
    return np.modf(np.abs(np.sin(12.9898 * np.arange(count, dtype=np.float64) + phase)) * 43758.5453)[0]


def golden_weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The weight that the golden values take for an official parameter."""
    r = 2 * pseudo_random(name, math.prod(shape)) - 1
    if name.rstrip("0123456789").endswith(("pos_embed", "cls_token")):
        value = 0.5 * r
    elif name.endswith("relative_position_bias_table"):
        value = r
    elif len(shape) >= 2:
        value = r * math.sqrt(3 / math.prod(shape[1:]))
    else:
        value = 1 + 0.1 * r if name.endswith("weight") else 0.1 * r
    return torch.from_numpy(value.reshape(shape).astype(np.float32))


def golden_image(height: int, width: int) -> Tensor:
    values = 2 * pseudo_random("input", 3 * height * width) - 1
    return torch.from_numpy(values.reshape(1, 3, height, width).astype(np.float32))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.detach() - expected).abs().max() / expected.abs().max())
