"""``python -m mm_vitbackbones doctor``: the versions in use, what is wrong with them and how to mend it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mm_vitbackbones import __version__, doctor


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. An unknown one exits with code 2."""
    parser = argparse.ArgumentParser(prog="python -m mm_vitbackbones", description="Look after an installation.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser(
        "doctor", help="print the versions in use, what is wrong and the line that mends it; exit code 1 on a blocker"
    )
    commands.add_parser("help", help="print this help")
    if parser.parse_args(argv).command == "doctor":
        return doctor.main()
    parser.print_help()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
