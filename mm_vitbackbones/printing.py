"""What commands print and log, with nothing in it that steers a terminal.

Names of classes and files, keys of checkpoints and texts of JSON files come from somewhere else. An escape sequence
among them could clear the screen, change what was printed before, or write to the clipboard. It is shown escaped.
"""

from __future__ import annotations

import builtins
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


@contextmanager
def printable_logs() -> Iterator[None]:
    """Within it, the messages of all loggers are ``printable``, those of the libraries, too."""
    make = logging.getLogRecordFactory()

    def make_printable(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        with suppress(Exception):  # a message that does not fit its arguments: logging reports that itself
            record.msg, record.args = printable(record.getMessage(), LAYOUT), None
        return record

    logging.setLogRecordFactory(make_printable)
    try:
        yield
    finally:
        logging.setLogRecordFactory(make)
