"""Where things are in this repository."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
TOOLS = ROOT / "tools"
DATA = ROOT / "tests" / "data"
"""Recorded numbers of official networks, and lists of published names."""
TEST_CONFIGS = ROOT / "tests" / "helpers" / "configs"
"""Configs of tests alone: toy models, and the libraries' own backbones in our recipes."""
