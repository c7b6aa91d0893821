"""A fresh network begins as the official one of its family does: every parameter follows its rule in distribution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.families import PYTORCH, Rule
from helpers.toys import BY_FAMILY
from mm_vitbackbones.backbones import Backbone, PiT
from mm_vitbackbones.build import families

NETWORKS = [(family.network, arch) for family in BY_FAMILY.values() for arch in family.wide]
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
    assert {*families().values()} == {family for family, _ in NETWORKS}


@pytest.mark.parametrize(("family", "arch"), NETWORKS, ids=lambda value: getattr(value, "__name__", ""))
def test_every_parameter_follows_the_official_rule(family: type[Backbone], arch: Mapping[str, Any]) -> None:
    torch.manual_seed(0)
    network = family(arch=arch).double()
    rules, seen = BY_FAMILY[family.__name__].rules, set()
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
