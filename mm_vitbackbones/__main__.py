"""``python -m mm_vitbackbones COMMAND``: runs any command. It imports what the command needs, and no more."""

from __future__ import annotations

if __name__ == "__main__":  # before anything else is imported: the current folder may have a file of that name
    from mm_vitbackbones.search_path import leave_current_folder

    leave_current_folder()

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from mm_vitbackbones import __version__
from mm_vitbackbones.encoding import use_utf8
from mm_vitbackbones.errors import did_you_mean
from mm_vitbackbones.printing import LAYOUT, print

COMMANDS = {
    "configs": ("configs", "list the recipes: what each is, and the published result"),
    "new_config": ("new_config", "write a config that fits your own data"),
    "config": ("write_config", "print a recipe, or write it as a config of your own"),
    "train": ("train", "train the detector or segmentor of a config"),
    "test": ("test", "evaluate a checkpoint on the test set of a config"),
    "predict": ("predict", "detect or segment in images"),
    "look": ("look", "draw what a network sees: attention, receptive fields, features, what a prediction rests on"),
    "analyze": ("analyze", "write a page on what a model gets wrong"),
    "describe": ("describe", "parameters, multiply-adds and levels of a backbone"),
    "check_data": ("check_data", "find what is wrong with the data sets of a config"),
    "try_config": ("dry_run", "run a step of a config on noise, and say what memory it takes"),
    "prepare_data": ("prepare_data", "put one of the small data sets under data/"),
    "convert_dataset": ("convert_dataset", "turn data of YOLO, VOC, CVAT, labelme or masks into the library's form"),
    "convert_checkpoint": ("convert_checkpoint", "write a checkpoint in another layout"),
    "export": ("export", "write a network as an ONNX file or an exported program, and check it"),
    "ops": ("ops", "give mmcv-lite its operators, in plain PyTorch, or take them away"),
}
"""The module of each command in ``mm_vitbackbones.cli``, and what it does."""

DOCTOR = "print the versions in use, what is wrong and the line that fixes it; exit code 1 on a blocker"


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, as those of all commands."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. An unknown one exits with code 2."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["help"]
    command = name.replace("-", "_")
    if command == "doctor":
        _Parser(prog="python -m mm_vitbackbones doctor", description=f"{DOCTOR}.").parse_args(rest)
        from mm_vitbackbones import doctor

        return doctor.main()
    if command in COMMANDS:
        return _run(COMMANDS[command][0], rest)
    if name == "--version":
        print(__version__)
        return 0
    if name not in ("help", "-h", "--help"):
        near = did_you_mean(command, [*COMMANDS, "doctor"])
        print(
            f"error: there is no command {name!r}{near or '; `python -m mm_vitbackbones help` lists them'}",
            file=sys.stderr,
        )
        return 2
    print("usage: python -m mm_vitbackbones COMMAND ... (COMMAND --help says what each takes)\n", keep=LAYOUT)
    for command, what in {**{name: what for name, (_, what) in COMMANDS.items()}, "doctor": DOCTOR}.items():
        print(f"  {command:<20}{what}")
    return 0


def _run(module: str, arguments: list[str]) -> int:
    try:
        run = import_module("mm_vitbackbones.cli.arguments").run
        entry = import_module(f"mm_vitbackbones.cli.{module}").main
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("mm_vitbackbones"):
            raise
        print(
            f"error: {error.name} is not installed, which this command needs: "
            "`python -m mm_vitbackbones doctor` says what to install",
            file=sys.stderr,
        )
        return 2
    code: int = run(entry, arguments)
    return code


if __name__ == "__main__":
    use_utf8()
    raise SystemExit(main())
