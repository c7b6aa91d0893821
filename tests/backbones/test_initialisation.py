"""A fresh network begins as the official one of its family does: every parameter follows its rule in distribution."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mm_vitbackbones.backbones import (
    PVT,
    Backbone,
    CaiT,
    CoaT,
    DINOv2,
    DINOv3,
    MiT,
    MViTv2,
    PiT,
    PVTv2,
    Swin,
    ViT,
    XCiT,
)
from mm_vitbackbones.build import families


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

RULES: Mapping[type[Backbone], Mapping[str, Rule]] = {
    # The official code: linear maps and tables truncated normal of 0.02, norms 1 and 0, nothing for convolutions.
    PVT: {**SMALL_LINEARS, **PYTORCH_CONVS, "table": SMALL},
    # The official code, and timm 1.0.31 (pvt_v2_b0, pvt_v2_b2_li): the same, and convolutions by fan-out.
    PVTv2: {**SMALL_LINEARS, **FAN_OUT_CONVS},
    # The official code: as PVTv2.
    MiT: {**SMALL_LINEARS, **FAN_OUT_CONVS},
    # The official code, and timm 1.0.31 (swin_tiny): as PVT; the tables are those of relative positions.
    Swin: {**SMALL_LINEARS, **PYTORCH_CONVS, "table": SMALL},
    # The official code, and timm 1.0.31 (coat_tiny, coat_lite_tiny): as PVT; no rule for the depthwise convolutions.
    CoaT: {**SMALL_LINEARS, **PYTORCH_CONVS, "table": SMALL},
    # The official code, and timm 1.0.31 (pit_ti, pit_s_distilled): the table and the class tokens alone have a rule.
    # In the first stage of `ti` linear maps of 64 channels have a standard deviation of 0.072.
    # facebookresearch/deit, models.py with timm's ViT: as PVT; layer scale is a constant.
    ViT: {**SMALL_LINEARS, **PYTORCH_CONVS, "table": SMALL, "gamma": Rule(lambda _: 0.125, None)},
    # facebookresearch/dinov2: as ViT, except for tokens that begin near zero.
    DINOv2: {**SMALL_LINEARS, **PYTORCH_CONVS, "table": SMALL, "token": TINY, "gamma": Rule(lambda _: 0.125, None)},
    # The paper, and timm 1.0.31 (vit_small_patch16_dinov3): as ViT; there is no table.
    DINOv3: {**SMALL_LINEARS, **PYTORCH_CONVS, "token": SMALL, "gamma": Rule(lambda _: 0.125, None)},
    # facebookresearch/deit, cait_models.py: as ViT.
    CaiT: {**SMALL_LINEARS, **PYTORCH_CONVS, "table": SMALL, "gamma": Rule(lambda _: 0.125, None)},
    # facebookresearch/xcit, xcit.py: as PVT; no rule for convolutions, and constants.
    XCiT: {
        **SMALL_LINEARS,
        "conv.weight": PYTORCH,
        "conv.bias": PYTORCH,
        "temperature": ONE,
        "gamma": Rule(lambda _: 0.125, None),
    },
    # detectron2's mvit.py: as PVT; the tables are those of distances.
    MViTv2: {**SMALL_LINEARS, **PYTORCH_CONVS, "table": SMALL},
    PiT: {"linear.weight": PYTORCH, "linear.bias": PYTORCH, **NORMS, **PYTORCH_CONVS, "table": SMALL},
}
"""By family: the rule of each kind of parameter, and where it is from."""

STAGES = dict(depths=(1, 2, 1, 1), dims=(64, 64, 128, 128), num_heads=(1, 2, 4, 8), mlp_ratios=(4, 4, 4, 4))
PIT = dict(dims=(64, 128, 256), num_heads=(2, 4, 8), depths=(2, 1, 1), pretrain_grid=9)
COAT = dict(depths=(1, 2, 1, 1), dims=(64, 64, 64, 64), mlp_ratios=(4, 4, 4, 4))
COLUMN = dict(dim=128, num_heads=2, depth=4, layer_scale=0.125)
NETWORKS: list[tuple[type[Backbone], Mapping[str, Any]]] = [
    (PVT, STAGES),
    (PVTv2, STAGES),
    (PVTv2, STAGES | {"linear": True}),
    (MiT, STAGES),
    (Swin, {key: STAGES[key] for key in ("depths", "dims", "num_heads")}),
    (CoaT, COAT),
    (CoaT, COAT | {"parallel_depth": 1}),
    (PiT, PIT),
    (PiT, PIT | {"num_tokens": 2}),
    (ViT, COLUMN | {"pretrain_grid": 9}),
    (DINOv2, COLUMN | {"pretrain_grid": 9, "registers": 30}),
    (DINOv3, COLUMN | {"registers": 30}),
    (CaiT, COLUMN | {"pretrain_grid": 9, "num_heads": 16}),
    (XCiT, COLUMN),
    (MViTv2, {key: STAGES[key] for key in ("depths", "num_heads")} | {"dims": (64, 128, 256, 512)}),
]
"""Networks of every form, with enough values in each parameter."""


def kind_of(module: nn.Module, name: str) -> str:
    """What a parameter is called in a family's rules."""
    kinds = {
        nn.Linear: "linear",
        nn.Conv2d: "conv",
        nn.ConvTranspose2d: "conv",
        nn.LayerNorm: "norm",
        nn.BatchNorm2d: "norm",
    }
    found = next((kind for layer, kind in kinds.items() if isinstance(module, layer)), None)
    if found:
        return f"{found}.{name}"
    return {"gamma": "gamma", "class_tokens": "token", "registers": "token", "temperature": "temperature"}.get(
        name, "table"
    )


def check_moments(values: Tensor, rule: Rule, where: str) -> None:
    """Values of expected standard deviation 1: their mean, deviation and, of many, the form of their distribution."""
    count = values.numel()
    assert values.mean().abs() < 5 * count**-0.5, where
    assert values.std(correction=0).sub(1).abs() < 5 * (2 * count) ** -0.5, where
    if count >= 2000 and rule.kurtosis is not None:
        assert values.pow(4).mean().sub(rule.kurtosis).abs() < 0.5, where


def test_every_family_has_rules() -> None:
    assert {*families().values()} == RULES.keys() == {family for family, _ in NETWORKS}


@pytest.mark.parametrize(("family", "arch"), NETWORKS, ids=lambda value: getattr(value, "__name__", ""))
def test_every_parameter_follows_the_official_rule(family: type[Backbone], arch: Mapping[str, Any]) -> None:
    torch.manual_seed(0)
    network = family(arch=arch).double()
    rules, seen = RULES[family], set()
    pooled: dict[Rule, list[Tensor]] = {}
    for path, module in network.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            kind, where = kind_of(module, name), f"{path}.{name}"
            kind = "table" if kind == "token" and kind not in rules else kind
            rule, values = rules[kind], parameter.detach().flatten()
            seen.add(kind)
            if rule.kurtosis is None:
                assert values.eq(rule.scale(module)).all(), where
                continue
            values = values / rule.scale(None if kind in ("table", "token") else module)
            check_moments(values, rule, where)
            if rule is PYTORCH:
                assert values.abs().max() <= 3**0.5 * (1 + 1e-6), where
            pooled.setdefault(rule, []).append(values)
    assert seen == rules.keys()
    for rule, parts in pooled.items():
        check_moments(torch.cat(parts), rule, f"all of {family.__name__}")


def test_the_first_linear_maps_of_pit_ti() -> None:
    torch.manual_seed(0)
    block = PiT("ti", out_indices=(1,)).requires_grad_(False).stages[0].blocks[0]
    assert block.attn.qkv.weight.std() == pytest.approx(0.0722, abs=0.001)
    assert block.attn.qkv.bias.std() == pytest.approx(0.0722, abs=0.01)
