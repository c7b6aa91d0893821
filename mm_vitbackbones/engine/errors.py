"""Errors of the user's, told in one line, apart from errors of ours, which keep their traceback."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

from mm_vitbackbones.checkpoints.errors import CheckpointError


class UserError(Exception):
    """Something that the user can mend. The message is one line: what is wrong and what to do."""


class Parser(argparse.ArgumentParser):
    """An argument parser that complains in one line, as the rest of the tools do."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def run(main: Callable[[list[str]], None], argv: list[str] | None = None) -> int:
    """Run a tool on its arguments and give its exit code: 0, or 2 and one line on stderr for a ``UserError``.

    A checkpoint that cannot be used, which may be found as late as when the weights are initialised, counts as one.
    Any other exception passes through. In a distributed run the first process alone speaks.
    """
    try:
        main(sys.argv[1:] if argv is None else argv)
    except (UserError, CheckpointError) as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def did_you_mean(word: str, known: Iterable[str], count: int = 3) -> str:
    """A clause such as ``; did you mean 'a' or 'b'?``, empty if nothing known is near."""
    by_fold = {name.lower(): name for name in known}
    near = [by_fold[fold] for fold in difflib.get_close_matches(word.lower(), by_fold, n=count)]
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
