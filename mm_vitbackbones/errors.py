"""Mistakes that a user can correct: exceptions whose message is all that the user needs. Imports no torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class _Printable(Exception):
    """Its message quotes files of others, and steers no terminal."""

    def __str__(self) -> str:
        return printable(super().__str__(), "\n\t")


class UserError(_Printable):
    """Something that the user can fix. The message is one line: what is wrong and what to do."""


class DataError(UserError):
    """A file of a data set that cannot be read, met by one process of a run, perhaps not by the first."""


class OutputError(UserError):
    """A file or folder that cannot be written, as on a full disk; what was written before is kept."""


class ArgumentError(UserError, ValueError):
    """What a network, or another part of a config, is given and does not take; the message says what it takes."""


class CheckpointError(_Printable, ValueError):
    """A checkpoint that cannot be read or used; the message says what it is and what to do."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint that asks for code to be run. Nothing of it has run."""


class CheckpointMismatch(CheckpointError):
    """A checkpoint whose parameters are not those of the network. The network is unchanged."""


class DownloadError(CheckpointError):
    """A checkpoint that cannot be downloaded; the message names the file to put in its place."""


_SPACES = "\u00a0\u200c\u200d\u3000"
"""Not printable by Python's rule, harmless, and parts of words in some scripts."""


def printable(text: object, keep: str = "") -> str:
    """A text in which nothing steers a terminal: control characters, line ends and what changes the direction of
    writing are shown escaped, such as ``\\x1b``.

    Args:
        keep: characters that stay, such as line ends.
    """
    text = str(text)
    if text.isprintable():
        return text
    shown = _SPACES + keep
    return "".join(c if c.isprintable() or c in shown else c.encode("unicode_escape").decode() for c in text)


def did_you_mean(word: str, known: Iterable[str], count: int = 3) -> str:
    """A clause such as ``; did you mean 'a' or 'b'?``, empty if nothing known is near."""
    by_fold = {name.lower(): name for name in known}
    near = [by_fold[fold] for fold in difflib.get_close_matches(word.lower(), by_fold, n=count)]
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def counted(count: int, one: str, many: str = "") -> str:
    """Such as ``1 image`` and ``1,200 images``; ``many`` is the plural, if that is not ``one`` and an s."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def shorten(names: list[str] | tuple[str, ...], most: int = 8) -> str:
    """The first ``most`` of the names, and how many more there are."""
    rest = f", ... ({len(names) - most} more)" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + rest
