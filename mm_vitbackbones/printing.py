"""What commands print and log, with nothing in it that steers a terminal.

Names of classes and files, keys of checkpoints and texts of JSON files come from somewhere else. An escape sequence
among them could clear the screen, change what was printed before, or write to the clipboard. It is shown escaped.
"""

from __future__ import annotations

import builtins
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from mm_vitbackbones.errors import printable

LAYOUT = "\n\t"
"""What texts of several lines are made of."""


def print(*values: Any, keep: str = "", **options: Any) -> None:
    """Python's ``print``, with ``printable`` texts: a name with a line end in it makes no line of its own.

    Args:
        keep: ``LAYOUT``, for texts of several lines whose names are ``printable`` already.
    """
    builtins.print(*(printable(value, keep) for value in values), **options)


class Lines(str):
    """A message of several lines, whose names are ``printable`` already."""


@contextmanager
def printable_logs(words: Iterable[str] = ()) -> Iterator[None]:
    """Within it, the messages of all loggers and warnings are ``printable``, those of the libraries, too.

    Those of this package have one line, except for ``Lines``.

    Args:
        words: what the user typed. Names of files with line ends in them make no lines of their own in messages of the
            libraries.
    """
    make, format_warning = logging.getLogRecordFactory(), warnings.formatwarning
    parts = {part for word in words for part in word.split("/") if not set(LAYOUT).isdisjoint(part)}
    names = sorted(parts | {part.rpartition(".")[0] for part in parts} - {""}, key=len, reverse=True)

    def inert(text: object, layout: str = LAYOUT) -> str:
        text = str(text)
        for name in names:
            text = text.replace(name, printable(name))
        return printable(text, layout)

    def print_inert(*values: object, **options: Any) -> None:
        builtins.print(*map(inert, values), **options)

    def make_printable(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        with suppress(Exception):  # a message that does not fit its arguments: logging reports that itself
            layout = LAYOUT if isinstance(record.msg, Lines) or not _is_ours() else ""
            record.msg, record.args = inert(record.getMessage(), layout), None
        return record

    def format_printable(*args: Any, **kwargs: Any) -> str:
        return printable(format_warning(*args, **kwargs), LAYOUT)

    mmengine = sys.modules.get("mmengine.logging.logger")  # without a logger it prints
    logging.setLogRecordFactory(make_printable)
    warnings.formatwarning = format_printable
    if mmengine:
        vars(mmengine)["print"] = print_inert  # replaces the built-in one
    try:
        yield
    finally:
        logging.setLogRecordFactory(make)
        warnings.formatwarning = format_warning
        if mmengine:
            vars(mmengine).pop("print", None)


def _is_ours() -> bool:
    """Whether a module of this package is logging."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name != __name__ and not name.startswith(("logging", "mmengine.logging")):
            return name.partition(".")[0] == "mm_vitbackbones"
        frame = frame.f_back
    return False
