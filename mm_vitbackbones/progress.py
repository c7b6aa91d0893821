"""The progress of long work: a bar on a terminal, a line now and then in a file. Needs Python alone."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TextIO, TypeVar

Item = TypeVar("Item")

BAR = 30
"""Width of the bar, in characters, where there is room."""

REDRAW = 0.1
"""Seconds between two drawings of the bar."""


class Progress:
    """Shows how much of some work is done.

    On a terminal one line is drawn again and again. In a file it is at most one line per ``every`` seconds, and a last
    one. In a distributed run only the first process prints.

    Args:
        what: the work, as the beginning of each line.
        total: how many items the work has.
        every: seconds between two lines in a file.
        file: standard output by default.
        clock: seconds since any fixed time.
    """

    def __init__(
        self,
        what: str,
        total: int,
        every: float = 10.0,
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what, self.total, self.clock = what, total, clock
        self.file = sys.stdout if file is None else file
        self.on_terminal = self.file.isatty()
        self.every = REDRAW if self.on_terminal else every
        self.silent = os.environ.get("RANK", "0") != "0"
        self.done, self._width = 0, 0
        self._begin = self._shown = clock()
        if self.on_terminal and total > 0:
            self._show()

    def update(self, done: int) -> None:
        """Sets how many items are done."""
        self.done = done
        if done >= self.total or self.clock() - self._shown >= self.every:
            self._show()

    def close(self) -> None:
        """Ends the line if the work stopped early, so that later output begins a new line."""
        if self.on_terminal and self._width > 0 and self.done < self.total and not self.silent:
            self.file.write("\n")
            self.file.flush()

    def _show(self) -> None:
        self._shown = self.clock()
        if self.silent:
            return
        finished = self.done >= self.total
        if self.on_terminal:
            columns = (
                shutil.get_terminal_size().columns - 1
            )  # in a line that is too wide, \r goes back to its last part
            width = min(BAR, columns - len(str(self)) - len("[] "))
            bar = ">" * (width * self.done // self.total)
            text = f"[{bar:<{width}}] {self}" if width > 0 else str(self)[:columns]
            self.file.write(f"\r{text:<{self._width}}" + "\n" * finished)
            self._width = len(text)
        else:
            self.file.write(f"{self}\n")
        self.file.flush()

    def __str__(self) -> str:
        elapsed = self._shown - self._begin
        text = f"{self.what}: {self.done}/{self.total}, {_duration(elapsed)}"
        if 0 < self.done < self.total:
            text += f", about {_duration(elapsed / self.done * (self.total - self.done))} left"
        return text


def track(
    items: Iterable[Item],
    what: str,
    total: int | None = None,
    every: float = 10.0,
    file: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Item]:
    """The items, one by one, with the progress of the work on them shown.

    Args:
        total: how many items there are, if they have no ``len``. See ``Progress`` for the others.
    """
    if total is None:
        assert isinstance(items, Sized)
        total = len(items)
    progress = Progress(what, total, every, file, clock)
    try:
        for done, item in enumerate(items, start=1):
            yield item
            progress.update(done)
    finally:
        progress.close()


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
