"""Logs of a run whose disk may become full: lines are written whole or not at all, and the run goes on."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import mmengine
from mmengine.runner import Runner
from mmengine.visualization import LocalVisBackend

from mm_vitbackbones.errors import printable


def keep_going(runner: Runner) -> None:
    """Have a run go on where its log files cannot be written: one line on the console says so for each of them."""
    for backend in getattr(runner.visualizer, "_vis_backends", {}).values():
        if type(backend) is LocalVisBackend:
            backend._dump = ScalarLog(runner.logger.warning)
    for handler in runner.logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handleError = OneLine(handler)  # type: ignore[method-assign]


class ScalarLog:
    """Appends scalars to a file of JSON lines, in place of ``LocalVisBackend._dump``.

    Args:
        warn: is called with a line when a file cannot be written, once for each file.
    """

    def __init__(self, warn: Callable[[str], Any]) -> None:
        self.warn = warn
        self._failed: set[str] = set()

    def __call__(self, values: dict[str, Any], path: str, file_format: str) -> None:
        line = f"{mmengine.dump(values, file_format=file_format)}\n".encode()
        try:
            append_whole(path, line)
        except OSError as error:
            if path not in self._failed:
                self._failed.add(path)
                self.warn(f"{path} is not written: {error.strerror}; lines are missing in it, and the run goes on")


def append_whole(path: str, content: bytes) -> None:
    """Add to the end of a file; where that fails halfway, the file is as before."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        before = os.fstat(file).st_size
        try:
            rest = content
            while rest:
                rest = rest[os.write(file, rest) :]
        except OSError:
            os.ftruncate(file, before)
            raise
    finally:
        os.close(file)


class OneLine:
    """In place of a handler's ``handleError``, which prints a traceback for every line that it cannot write."""

    def __init__(self, handler: logging.FileHandler) -> None:
        self.handler, self._usual, self._said = handler, handler.handleError, False

    def __call__(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            self._usual(record)
        elif not self._said:
            self._said = True
            name = printable(self.handler.baseFilename)
            os.write(2, f"{name} is not written: {error.strerror}; the run goes on\n".encode())
