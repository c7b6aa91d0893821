"""Rates that fall with the depth, in groups that can be read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from torch import nn

from helpers.toys import TOYS
from mm_vitbackbones.cli.preflight import check_rules
from mm_vitbackbones.engine import layer_decay
from mm_vitbackbones.engine.console import IN_FILE

RULES = dict(norm_decay_mult=0.0, bias_decay_mult=0.0)


class Detector(nn.Module):
    def __init__(self, toy: str = "pvt_v2", **kwargs) -> None:
        super().__init__()
        self.backbone = TOYS[toy](**kwargs)
        self.head = nn.Linear(4, 4)


def settings(model: nn.Module, **rules) -> tuple[dict[str, tuple[float, float]], int]:
    """(rate, decay) by name, and the number of groups."""
    wrapper = build_optim_wrapper(
        model,
        dict(
            constructor="mm_vitbackbones.LayerDecayOptimWrapperConstructor",
            paramwise_cfg=dict(layer_decay_rate=0.5) | rules,
            optimizer=dict(type="AdamW", lr=1.0, weight_decay=0.1),
        ),
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [group for group in wrapper.optimizer.param_groups if id(group["params"][0]) in names]
    found = {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    return found, len(groups)


@pytest.mark.parametrize("toy", TOYS)
def test_rates_halve_with_each_depth(toy):
    model = Detector(toy)
    found, groups = settings(model, **RULES)
    assert found.keys() == dict(model.named_parameters()).keys()
    norms = tuple(f"{n}." for n, part in model.named_modules() if isinstance(part, (nn.LayerNorm, nn.BatchNorm2d)))
    for name, (rate, decay) in found.items():
        if name.startswith("head."):
            assert rate == 1.0
        else:
            depth, count = model.backbone.get_layer_depth(name, "backbone.")
            assert rate == pytest.approx(0.5 ** (count - 1 - depth))
        spared = name.endswith(".bias") or name.startswith(norms)
        assert decay == (0.0 if spared else 0.1), name
    assert groups == len(set(found.values()))


def test_rates_fall_with_depth_without_other_rules():
    found, _ = settings(Detector())
    assert {decay for _, decay in found.values()} == {0.1}
    assert len({rate for rate, _ in found.values()}) == 7  # five blocks, the stem, the head


def test_rules_by_name_multiply_the_rate_of_the_depth():
    found, _ = settings(
        Detector(), custom_keys={"stages.3": dict(lr_mult=10.0, decay_mult=0.0), "head": dict(lr_mult=3.0)}
    )
    plain, _ = settings(Detector())
    for name, (rate, decay) in found.items():
        factor = 10.0 if "stages.3" in name else 3.0 if "head" in name else 1.0
        assert rate == pytest.approx(plain[name][0] * factor)
        assert decay == (0.0 if "stages.3" in name else 0.1)


def test_frozen_parameters_are_in_no_group():
    found, _ = settings(Detector(frozen_stages=1))
    assert not [name for name in found if name.startswith("backbone.stages.0.")]


def test_groups_are_logged_as_a_line_and_a_table(monkeypatch):
    logged: list[tuple[str, Any]] = []
    logger = MMLogger.get_current_instance()
    monkeypatch.setattr(logger, "info", lambda text, extra=None: logged.append((text, extra)))
    found, groups = settings(Detector(), **RULES)
    (line, _), (table, extra) = logged
    assert line == f"{groups} parameter groups, with rates of {min(rate for rate, _ in found.values()):.3g} to 1"
    assert extra == IN_FILE
    title, head, *rows = table.splitlines()
    assert title == "parameter groups"
    assert head.split() == ["rate", "decay", "tensors", "values", "first", "and", "last"]
    assert len(rows) == groups
    assert rows[-1].split()[:2] == ["1.000e+00", "0.1"]
    assert sum(int(row.split()[3].replace(",", "")) for row in rows) == sum(p.numel() for p in Detector().parameters())


@pytest.mark.parametrize(
    ("model", "rules", "message"),
    [
        (Detector, dict(layer_decay_rate=1.5), "layer_decay_rate=1.5"),
        (Detector, dict(layer_decay_rate=None), "layer_decay_rate=None"),
        (lambda: nn.Linear(2, 2), {}, "no backbone of mm_vitbackbones"),
    ],
)
def test_wrong_rules_are_refused(model, rules, message):
    with pytest.raises(ValueError, match=message):
        settings(model(), **rules)


WITHOUT_EFFECT = [
    (dict(custom_keys=dict(haed=dict(lr_mult=2.0))), "'haed' is part of no parameter's name; did you mean 'head'?"),
    (dict(custom_keys=dict(absolute_pos_embed=dict(decay_mult=0.0))), "'absolute_pos_embed' is part of no parameter's"),
    (dict(custom_keys=dict(head=dict(decay_mul=0.0))), "'decay_mul' is no factor; did you mean 'decay_mult'"),
    (dict(norm_decay_mul=0.0), "'norm_decay_mul' is no rule; did you mean 'norm_decay_mult'"),
]
"""Rules of an optimizer that MMEngine's constructor passes over, and what is said of each."""


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """The warnings about rules."""
    messages: list[str] = []
    monkeypatch.setattr(layer_decay, "print_log", lambda message, logger, level: messages.append(message))
    return messages


@pytest.mark.parametrize(("rules", "message"), WITHOUT_EFFECT)
@pytest.mark.parametrize("constructor", ["ours", "mmengines"])
def test_a_rule_without_effect_is_a_warning(rules, message, constructor, said):
    if constructor == "ours":
        settings(Detector(), **rules)
    else:
        check_rules(Config(dict(optim_wrapper=dict(paramwise_cfg=rules))), Detector())
    assert len(said) == 1
    assert message in said[0]


def test_rules_that_match_and_those_of_other_constructors_are_no_warning(said):
    rules = dict(norm_decay_mult=0.0, custom_keys={"head": dict(lr_mult=2.0), "stages.3": dict(decay_mult=0.0)})
    other = dict(constructor="LearningRateDecayOptimizerConstructor", paramwise_cfg=dict(num_layers=12))
    check_rules(Config(dict(optim_wrapper=dict(paramwise_cfg=rules))), Detector())
    check_rules(Config(dict(optim_wrapper=other)), Detector())
    assert not said


def test_one_step_changes_backbone_and_head():
    model = Detector(drop_path_rate=0.0)
    wrapper = build_optim_wrapper(
        model,
        dict(
            constructor="mm_vitbackbones.LayerDecayOptimWrapperConstructor",
            paramwise_cfg=dict(layer_decay_rate=0.5),
            optimizer=dict(type="SGD", lr=0.1),
        ),
    )
    before = {name: p.clone() for name, p in model.named_parameters()}
    # Weighed, as what a norm returns has the same mean and the same square whatever it was given.
    levels = [level.flatten() for level in model.backbone(torch.randn(1, 3, 64, 64))]
    loss = sum(level @ torch.linspace(-1, 1, len(level)) for level in levels) + model.head.weight.sum()
    wrapper.update_params(loss)
    assert not torch.equal(model.head.weight, before["head.weight"])
    assert not torch.equal(
        model.backbone.stages[0].patch_embed.proj.weight, before["backbone.stages.0.patch_embed.proj.weight"]
    )
