"""Write a checkpoint in another layout, or with its adapters merged into the weights."""

from __future__ import annotations

import argparse
import ast

from mm_vitbackbones.checkpoints import Conversion, Merge, convert_checkpoint, merge_checkpoint
from mm_vitbackbones.checkpoints.converting import TARGETS
from mm_vitbackbones.cli.arguments import Parser
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.printing import LAYOUT, print


def arch(text: str) -> str | dict:
    """The name of an arch, or a dict as a Python literal."""
    try:
        return ast.literal_eval(text) if text.lstrip().startswith("{") else text
    except (SyntaxError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is no dict of numbers and tuples") from None


def main(argv: list[str]) -> None:
    """The command line of tools/convert_checkpoint.py.

    Raises:
        UserError: if the destination exists, without ``--force``.
        CheckpointError: if the source cannot be read or recognised, or the target layout cannot hold it; without
            adapters to merge.
    """
    parser = Parser(prog="convert_checkpoint.py", description="Write a checkpoint in another layout, bit for bit.")
    parser.add_argument("source", metavar="IN", help="a checkpoint of any known layout, or its URL")
    parser.add_argument("destination", metavar="OUT", help="the file to write: .pth or .safetensors")
    parser.add_argument("--to", choices=TARGETS, help="the layout to write (ours)")
    parser.add_argument(
        "--arch",
        type=arch,
        help="name or dict of the spec's fields, for weights of no published size: \"{'depths': ...}\"",
    )
    parser.add_argument(
        "--merge",
        action="store_true",
        help="merge low-rank adapters (LoRA) into the weights; without --to, all weights of the model are written",
    )
    parser.add_argument("--force", action="store_true", help="overwrite OUT if it exists")
    args = parser.parse_args(argv)
    try:
        done: Conversion | Merge
        if args.merge and args.to is None and args.arch is None:
            done = merge_checkpoint(args.source, args.destination, args.force)
        else:
            to = args.to or "ours"
            done = convert_checkpoint(args.source, args.destination, to, args.arch, args.force, args.merge)
        print(done, keep=LAYOUT)
    except FileExistsError as error:
        raise UserError(str(error)) from None
