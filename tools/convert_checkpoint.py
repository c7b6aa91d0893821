"""Writes a checkpoint in another layout: python tools/convert_checkpoint.py IN OUT [--to official|ours|openmmlab]."""

from __future__ import annotations

import argparse
import ast
import sys

from mm_vitbackbones.checkpoints import CheckpointError, convert_checkpoint
from mm_vitbackbones.checkpoints.converting import TARGETS


def arch(text: str) -> str | dict:
    """A name, or a dict as Python writes it."""
    try:
        return ast.literal_eval(text) if text.lstrip().startswith("{") else text
    except (SyntaxError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is no dict of numbers and tuples") from None


def main() -> int:
    parser = argparse.ArgumentParser(description="Write a checkpoint in another layout, bit for bit.")
    parser.add_argument("source", metavar="IN", help="a checkpoint of any known layout, or its URL")
    parser.add_argument("destination", metavar="OUT", help="the file to write: .pth or .safetensors")
    parser.add_argument("--to", choices=TARGETS, default="ours", help="the layout to write (ours)")
    parser.add_argument(
        "--arch",
        type=arch,
        help="name or dict of the spec's fields, for weights of no published size: \"{'depths': ...}\"",
    )
    parser.add_argument("--force", action="store_true", help="write over OUT if it exists")
    args = parser.parse_args()
    try:
        print(convert_checkpoint(args.source, args.destination, args.to, args.arch, args.force))
    except (CheckpointError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
