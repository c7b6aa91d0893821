"""The implementation of ``tools/prepare_data.py``."""

from __future__ import annotations

from pathlib import Path

from mm_vitbackbones.cli.arguments import Parser
from mm_vitbackbones.data import mini, trees
from mm_vitbackbones.printing import print

MAKERS = {"trees": trees.prepare, "mini": mini.prepare}


def main(argv: list[str]) -> None:
    """Make the data set that the arguments name, unless it is there already."""
    parser = Parser(prog="tools/prepare_data.py", description="Put a small data set under data/.")
    parser.add_argument("dataset", choices=MAKERS, help="trees: photographs, fetched; mini: scenes, drawn here")
    parser.add_argument("--out", type=Path, help="the folder to make (data/DATASET)")
    args = parser.parse_args(argv)
    out = args.out or Path("data", args.dataset)
    made = MAKERS[args.dataset](out)
    print(f"{out} is ready" if made else f"{out} is up to date: nothing to do")
