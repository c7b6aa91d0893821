"""What the tests over all families know of one: its toys, and values of the official code. Those of each family are in
toys/<family>.py, made of the parts here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from mm_vitbackbones.backbones import Backbone
from mm_vitbackbones.backbones.base import Part

# ---- toys

SPEC = dict(
    depths=(2, 1, 1, 1),
    dims=(8, 16, 20, 32),
    num_heads=(1, 2, 5, 8),
    reductions=(8, 4, 2, 1),
    mlp_ratios=(8, 8, 4, 4),
)
"""Of PVT and what follows from it."""
COLUMN = dict(dim=16, num_heads=2, depth=4)
"""Of ViT and its successors."""


@dataclass(frozen=True)
class Toy:
    """A small network of a family. Called with arguments of the backbone, it builds one."""

    family: type[Backbone]
    arch: Mapping[str, Any]
    form: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that give the network the form of the official one."""
    classifier: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Names and shapes of what the official classifier's file holds besides this network's weights and the head."""
    head: str = "head."
    """What the names of the official classifier's last linear map begin with."""
    recorded: bool = True
    """The official network of this size has its weights and features in tests/data/<name>.npz."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of its own, which select what the family can do besides its default."""

    def __call__(self, **arguments: Any) -> Backbone:
        return self.family(**{"arch": self.arch, **self.options} | arguments)

    def official(self, **arguments: Any) -> Backbone:
        """In the form of the official network, which drops no paths."""
        return self(**dict(self.form, drop_path_rate=0.0) | arguments)


def norms(**widths: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{part}": (width,) for name, width in widths.items() for part in ("weight", "bias")}


# ---- rates of drop path


def blocks_of(backbone: Backbone) -> list[Part]:
    return [part for part in backbone.parts() if part.kind == "block"]


def linear_to_the_last(rate: float, backbone: Backbone) -> list[float]:
    count = len(blocks_of(backbone))
    return [rate * i / (count - 1) for i in range(count)]


def linear_below_the_last(rate: float, backbone: Backbone) -> list[float]:
    count = len(blocks_of(backbone))
    return [rate * i / count for i in range(count)]


def constant(rate: float, backbone: Backbone) -> list[float]:
    return [rate] * len(blocks_of(backbone))


# ---- rules of initialisation


@dataclass(frozen=True)
class Rule:
    """A distribution around 0, or a constant."""

    scale: Callable[[nn.Module | None], float]
    """The standard deviation of the values of a module, or the constant."""
    kurtosis: float | None
    """3 for normal values, 1.8 for uniform ones, None for a constant."""


def fan_in(module: nn.Module | None) -> float:
    assert isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))
    # In PyTorch's convention, which for a transposed convolution goes by its second dimension.
    return module.weight[0].numel()


def fan_out(module: nn.Module | None) -> float:
    assert isinstance(module, nn.Conv2d)
    return module.out_channels * math.prod(module.kernel_size) / module.groups


ZERO = Rule(lambda _: 0.0, None)
ONE = Rule(lambda _: 1.0, None)
EIGHTH = Rule(lambda _: 0.125, None)
"""The layer scale of ``WIDE_COLUMN``."""
SMALL = Rule(lambda _: 0.02, 3.0)
"""Truncated normal. PyTorch truncates at -2 and 2, which is 100 standard deviations away."""
PYTORCH = Rule(lambda module: (3 * fan_in(module)) ** -0.5, 1.8)
"""What a layer has that nobody initialises: uniform up to 1 / sqrt(fan-in), weights and biases alike."""
TINY = Rule(lambda _: 1e-6, 3.0)
BY_FAN_OUT = Rule(lambda module: math.sqrt(2 / fan_out(module)), 3.0)

NORMS = {"norm.weight": ONE, "norm.bias": ZERO}
SMALL_LINEARS = {"linear.weight": SMALL, "linear.bias": ZERO, **NORMS}
PYTORCH_CONVS = {"conv.weight": PYTORCH, "conv.bias": PYTORCH}
FAN_OUT_CONVS = {"conv.weight": BY_FAN_OUT, "conv.bias": ZERO}

WIDE_SPEC = dict(depths=(1, 2, 1, 1), dims=(64, 64, 128, 128), num_heads=(1, 2, 4, 8), mlp_ratios=(4, 4, 4, 4))
WIDE_COLUMN = dict(dim=128, num_heads=2, depth=4, layer_scale=0.125)

# ---- a family


@dataclass(frozen=True)
class Family:
    """What the tests over all families know of one."""

    network: type[Backbone]
    toys: Mapping[str, Toy]
    """By name. The first one is the family's default form."""
    parameters: Mapping[str, int]
    """By arch, the parameters of the dense form, as the authors' own code counts them."""
    drop_path: Callable[[float, Backbone], list[float]]
    """The official rule: a rate for each block."""
    rules: Mapping[str, Rule]
    """The official rule of initialisation of each kind of parameter."""
    wide: Sequence[Mapping[str, Any]]
    """Networks of every form, with enough values in each parameter to see its distribution."""
    golden: Mapping[tuple[str, tuple[int, int]], Sequence[tuple[float, ...]]] = field(default_factory=dict)
    """By arch and size of an image: mean, population standard deviation, and the elements [0, 0, 0, 0], [0, C//2, H//2,
    W//2], [0, -1, -1, -1] of each level, as the authors' code (for PiT) and their dense code (for the others) give
    them."""
    wrong: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """By argument of its own, values that it has no use for."""
    on_gpu: str | None = None
    """An arch of a width that kernels of our own are made for."""
    benchmark_on_gpu: bool = True
    """The benchmark on a GPU has it."""
