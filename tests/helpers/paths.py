"""Where things are in this repository."""

import functools
from pathlib import Path

from mm_vitbackbones.files import tracked

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
TOOLS = ROOT / "tools"
DATA = ROOT / "tests" / "data"
"""Recorded numbers of official networks, and lists of published names."""
TEST_CONFIGS = ROOT / "tests" / "helpers" / "configs"
"""Configs of tests alone: toy models, and the libraries' own backbones in our recipes."""


@functools.cache
def tracked_configs() -> tuple[Path, ...]:
    """The configs of this repository, without those that a user has put among them."""
    return tuple(path for path in tracked(CONFIGS) if path.suffix == ".py")


def recipe_files() -> list[Path]:
    """The recipes, without their parts."""
    return [path for path in tracked_configs() if path.parent == CONFIGS]
