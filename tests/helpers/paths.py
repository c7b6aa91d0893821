"""Where things are in this repository."""

import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
TOOLS = ROOT / "tools"
DATA = ROOT / "tests" / "data"
"""Recorded numbers of official networks, and lists of published names."""
TEST_CONFIGS = ROOT / "tests" / "helpers" / "configs"
"""Configs of tests alone: toy models, and the libraries' own backbones in our recipes."""


@functools.cache
def tracked_configs() -> tuple[Path, ...]:
    """The configs of this repository, without those that a user has put among them; all where there is no git."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "configs"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return tuple(sorted(CONFIGS.rglob("*.py")))
    found = (ROOT / name for name in listed.stdout.split("\0") if name.endswith(".py"))
    return tuple(sorted(path for path in found if path.is_file()))


def recipe_files() -> list[Path]:
    """The recipes, without their parts."""
    return [path for path in tracked_configs() if path.parent == CONFIGS]
