"""Optimizers whose learning rate falls from the head to the stem."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from mmengine.logging import MMLogger, print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from mm_vitbackbones.backbones.base import Backbone
from mm_vitbackbones.engine.console import IN_FILE
from mm_vitbackbones.errors import ArgumentError, did_you_mean
from mm_vitbackbones.printing import Lines
from mm_vitbackbones.registry import OPTIM_WRAPPER_CONSTRUCTORS

RULES = (
    "bias_decay_mult",
    "bias_lr_mult",
    "bypass_duplicate",
    "custom_keys",
    "dcn_offset_lr_mult",
    "dwconv_decay_mult",
    "flat_decay_mult",
    "norm_decay_mult",
)
"""What MMEngine's constructor looks for in ``paramwise_cfg``."""

FACTORS = ("lr_mult", "decay_mult")
"""What it looks for in each rule of ``custom_keys``."""


def rules_without_effect(rules: Mapping[str, Any] | None, model: nn.Module) -> list[str]:
    """What MMEngine's constructor passes over in ``paramwise_cfg``: one line for each rule of a name that it does not
    know, and for each rule of ``custom_keys`` that is part of no parameter's name."""
    found = [f"{rule!r} is no rule{did_you_mean(rule, RULES)}" for rule in rules or {} if rule not in RULES]
    names = [name for name, _ in model.named_parameters()]
    parts = {part for name in names for part in (*name.split("."), name, name.rpartition(".")[0])}
    by_name = (rules or {}).get("custom_keys")
    for key, factors in by_name.items() if isinstance(by_name, Mapping) else ():
        if not any(key in name for name in names):
            found.append(f"custom_keys: {key!r} is part of no parameter's name{did_you_mean(key, parts)}")
        for factor in factors if isinstance(factors, Mapping) else ():
            if factor not in FACTORS:
                found.append(f"custom_keys[{key!r}]: {factor!r} is no factor{did_you_mean(factor, FACTORS)}")
    return found


def warn_of_rules(rules: Mapping[str, Any] | None, model: nn.Module) -> None:
    """Log ``rules_without_effect``: a recipe may have rules for other networks, but a misspelt one would be lost."""
    for line in rules_without_effect(rules, model):
        print_log(f"optim_wrapper.paramwise_cfg has no effect here: {line}", logger="current", level=logging.WARNING)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's constructor, and a rate that each depth of the backbone multiplies by ``layer_decay_rate`` (Clark et
    al. 2020), for detectors and segmentors. Parameters outside of the backbone keep the full rate.

    In a config::

        optim_wrapper = dict(
            constructor="mm_vitbackbones.LayerDecayOptimWrapperConstructor",
            paramwise_cfg=dict(layer_decay_rate=0.7, norm_decay_mult=0.0, bias_decay_mult=0.0),
            optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05),
        )

    Parameters of equal settings make one group, and the groups are logged as a table.

    Args:
        optim_wrapper_cfg: as MMEngine's constructor takes it.
        paramwise_cfg: ``layer_decay_rate``, above 0 and at most 1, and any of MMEngine's rules.

    Raises:
        ValueError: without such a rate; when called, for a model without one of our backbones.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        rules = dict(paramwise_cfg or {})
        self.rate = rules.pop("layer_decay_rate", None)
        if not isinstance(self.rate, (int, float)) or not 0 < self.rate <= 1:
            raise ArgumentError(f"paramwise_cfg.layer_decay_rate={self.rate!r}: give a number above 0 and at most 1")
        # Without any rule MMEngine makes one group of all parameters, and never comes to `add_params`.
        super().__init__(optim_wrapper_cfg, rules or {"custom_keys": {}})

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = "", **kwargs: Any) -> None:
        super().add_params(params, module, prefix, **kwargs)
        if prefix == "":  # the whole model; the call for each part of it comes with a prefix
            params[:] = self._groups(params, module)

    def _groups(self, params: list[dict], model: nn.Module) -> list[dict]:
        """One group for each setting, out of one for each parameter."""
        warn_of_rules(self.paramwise_cfg, model)
        scales = self._scales(model)
        groups: dict[tuple, dict] = {}
        for single in params:
            (parameter,) = single["params"]
            rate = (single.get("lr") or self.base_lr or 0.0) * scales.get(id(parameter), 1.0)
            settings = {**single, "lr": rate, "weight_decay": single.get("weight_decay", self.base_wd)}
            settings = {key: value for key, value in settings.items() if key != "params" and value is not None}
            group = groups.setdefault(tuple(sorted(settings.items())), {**settings, "params": []})
            group["params"].append(parameter)
        ordered = sorted(groups.values(), key=lambda group: (group["lr"], group.get("weight_decay", 0.0)))
        logger = MMLogger.get_current_instance()
        rates = [group["lr"] for group in ordered]
        logger.info(f"{len(rates)} parameter groups, with rates of {rates[0]:.3g} to {rates[-1]:.3g}")
        logger.info(Lines(self._table(ordered, model)), extra=IN_FILE)
        return ordered

    def _scales(self, model: nn.Module) -> dict[int, float]:
        """The factor of each backbone parameter's rate, by the id of the parameter."""
        found = [part for part in model.modules() if isinstance(part, Backbone)]
        if not found:
            raise ArgumentError(
                "layer_decay_rate: the model has no backbone of mm_vitbackbones, whose depths it could ask"
            )
        scales = {}
        for backbone in found:
            depths, count = backbone.layer_depths()
            for name, parameter in backbone.named_parameters():
                scales[id(parameter)] = self.rate ** (count - 1 - depths[name])
        return scales

    @staticmethod
    def _table(groups: list[dict], model: nn.Module) -> str:
        named = {id(parameter): name for name, parameter in model.named_parameters()}
        lines = [f"{'rate':>10}  {'decay':>8}  {'tensors':>7}  {'values':>11}  first and last"]
        for group in groups:
            names = [named.get(id(parameter), "?") for parameter in group["params"]]
            values = sum(math.prod(parameter.shape) for parameter in group["params"])
            decay = group.get("weight_decay")
            lines.append(
                f"{group['lr']:>10.3e}  {'-' if decay is None else format(decay, '.3g'):>8}  {len(names):>7}  "
                f"{values:>11,}  {names[0]} ... {names[-1]}"
            )
        return "parameter groups\n" + "\n".join(lines)
