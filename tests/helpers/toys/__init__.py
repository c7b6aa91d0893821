"""Toy networks of all families: each stage and each kind of block, in milliseconds. And what else tests know of them.

A module for each family, found by its place here: a new family adds its module, and nothing else in the tests over all
families.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

import pytest

from helpers.families import COLUMN, SPEC, Family, Toy

__all__ = ["BY_FAMILY", "COLUMN", "RECORDED", "SPEC", "TOYS", "Family", "Toy", "different_toys", "only"]

BY_FAMILY: dict[str, Family] = {
    family.network.__name__: family
    for family in (import_module(f"{__name__}.{module.name}").FAMILY for module in pkgutil.iter_modules(__path__))
}
"""By the name of the class."""
TOYS = {name: toy for family in BY_FAMILY.values() for name, toy in family.toys.items()}
RECORDED = {name: toy for name, toy in TOYS.items() if toy.recorded}
"""Those to compare with the official networks."""
NEAR_OTHERS = "coat_lite", "mit", "pit_distilled", "pvt_v2_linear", "vit_windows"
"""Toys whose blocks are nearly those of others."""


def only(*names: str) -> pytest.MarkDecorator:
    """A parameter ``toy``: the names of all toys, of which a default run has these."""
    return pytest.mark.parametrize(
        "toy", [pytest.param(toy, marks=[] if toy in names else pytest.mark.slow) for toy in TOYS]
    )


different_toys = only(*(name for name in TOYS if name not in NEAR_OTHERS))
