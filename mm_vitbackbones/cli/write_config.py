"""Write a recipe as a config of the user's own."""

from __future__ import annotations

import shlex
from pathlib import Path

from mm_vitbackbones import recipes
from mm_vitbackbones.cli.arguments import Parser
from mm_vitbackbones.errors import UserError, printable
from mm_vitbackbones.files import write_new
from mm_vitbackbones.printing import LAYOUT, print


def main(argv: list[str]) -> None:
    """``python -m mm_vitbackbones config``: print a recipe, or write it as a starting point.

    Raises:
        UserError: there is no such recipe, or the file cannot be written or exists already.
    """
    parser = Parser(prog="config", description="Print a recipe, or write it as a config of your own to change.")
    parser.add_argument("name", metavar="NAME", help="a recipe; `python -m mm_vitbackbones configs` lists them")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the .py file to write; an existing file is never overwritten"
    )
    args = parser.parse_args(argv)
    if args.out is None:
        print(Path(recipes.recipe(args.name)).read_text(encoding="utf-8"), keep=LAYOUT, end="")
        return
    if args.out.suffix != ".py":
        raise UserError(f"--out {args.out}: a config ends in .py")
    text = recipes.starting_point(args.name, recipes.without_templates(printable(shlex.quote(str(args.out)))))
    write_new(args.out, text.encode())
    print(f"wrote {args.out}; train with: python -m mm_vitbackbones train {shlex.quote(str(args.out))}")
