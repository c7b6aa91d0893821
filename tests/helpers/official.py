"""The official networks' recorded numbers, and names for weights: what parity tests compare with."""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from helpers.paths import DATA
from helpers.toys import TOYS


@dataclass(frozen=True)
class Fixture:
    """A toy-size official network at random weights, its inputs and its features."""

    state: dict[str, Tensor]
    inputs: list[Tensor]
    features: list[list[Tensor]]


def load_fixture(name: str) -> Fixture:
    with np.load(DATA / f"{name}.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "arch"}
    runs = range(sum(key.startswith("input") for key in arrays))
    levels = range(sum(key.startswith("feature0_") for key in arrays))
    return Fixture(
        {key.removeprefix("state/"): value for key, value in arrays.items() if key.startswith("state/")},
        [arrays[f"input{i}"] for i in runs],
        [[arrays[f"feature{i}_{level}"] for level in levels] for i in runs],
    )


def official_state(toy: str) -> dict[str, Tensor]:
    """The recorded network's weights, and what a classifier's file holds besides them."""
    width, head = TOYS[toy].arch["dims"][-1], TOYS[toy].head
    shapes = {f"{head}weight": (10, width), f"{head}bias": (10,), **TOYS[toy].classifier}
    return load_fixture(toy).state | {name: torch.randn(shape) for name, shape in shapes.items()}


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
