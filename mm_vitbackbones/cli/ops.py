"""Writes mmcv's operators in plain PyTorch into mmcv-lite, for every program that imports it, and removes them."""

from __future__ import annotations

from mm_vitbackbones.cli.arguments import Parser
from mm_vitbackbones.mmcv_ops import lite
from mm_vitbackbones.printing import print


def main(argv: list[str]) -> None:
    """The command line of tools/ops.py.

    Raises:
        UserError: there is no mmcv-lite, mmcv has another extension, or its folder cannot be written to.
    """
    parser = Parser(
        prog="ops.py",
        description="mmcv-lite with operators in plain PyTorch. Without an option: what mmcv is there. The commands of "
        "this package need no installation.",
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--install", action="store_true", help="write mmcv/_ext.py, for all programs that import mmcv")
    choice.add_argument("--remove", action="store_true", help="take that file away")
    args = parser.parse_args(argv)
    if args.install:
        print(f"{lite.install()} gives mmcv-lite its operators, in plain PyTorch")
    elif args.remove:
        path = lite.remove()
        print(f"{path} is removed" if path else "nothing to remove: mmcv has no file of ours")
    else:
        found = lite.find()
        print(found.state.value + (f": {found.extension or found.folder}" if found.folder else ""))
        if found.state is lite.State.MISSING:
            print("`python -m mm_vitbackbones ops --install` gives it ours, for all programs")
