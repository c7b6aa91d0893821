"""List the recipes that come with the package."""

from __future__ import annotations

from mm_vitbackbones import recipes
from mm_vitbackbones.cli.arguments import Parser
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.printing import print


def main(argv: list[str]) -> None:
    """``python -m mm_vitbackbones configs``: one line for each recipe.

    Raises:
        UserError: if no recipe has all the words.
    """
    parser = Parser(
        prog="configs", description="List the recipes: name, network, data, and the published result (none is ours)."
    )
    parser.add_argument("words", nargs="*", metavar="FILTER", help="list those whose line has all these words")
    args = parser.parse_args(argv)
    found = recipes.summaries(args.words)
    if not found:
        raise UserError(
            f"no recipe has {' and '.join(map(repr, args.words))} in its line; without a word all are listed"
        )
    for summary in found:
        print(summary)
