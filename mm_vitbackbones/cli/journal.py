"""What a run of predict has done so far: kept in its output folder, so that the run can go on after any end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mm_vitbackbones.errors import OutputError, UserError
from mm_vitbackbones.files import PARTIAL, why_no_file, why_not

NAME = ".unfinished.jsonl"
"""The file. Its first line says what is done, and each other one is of an image that is finished."""


class Journal:
    """The finished images of a run. It belongs to one process at a time.

    Args:
        out: the output folder, which exists.
        settings: what has to be the same when the run goes on, by names for messages.

    Attributes:
        entries: of the images that were finished before, in their order.

    Raises:
        UserError: the run was begun with other settings, or is under way in another process.
        OutputError: it cannot be written.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        self.path = out / NAME
        self.entries: list[dict[str, Any]] = []
        begun = self.path.is_file() and not self.path.is_symlink()
        flags = os.O_RDWR | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | (0 if begun else os.O_CREAT | os.O_EXCL)
        try:
            self._file: BinaryIO = os.fdopen(os.open(self.path, flags, 0o666), "r+b", buffering=0)
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {why_not(error, out)}") from None
        try:
            self._lock()
            if begun and self._read(settings):
                _remove_partials(out)
            else:
                self._write(settings)
        except BaseException:
            self._file.close()
            raise

    def add(self, entry: Mapping[str, Any]) -> None:
        """Record a finished image. Its files have been written."""
        self._write(entry)

    def close(self, finished: bool) -> None:
        """Release the file, and remove it if there is nothing to go on with."""
        self._file.close()
        if finished:
            self.path.unlink(missing_ok=True)

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # no such locks on this system
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{self.path.parent} is being written by another run: name another folder") from None
        except OSError:
            return  # a file system without locks

    def _read(self, settings: Mapping[str, Any]) -> bool:
        """Take the lines of an earlier run. False if it ended before the first one was whole."""
        whole = 0
        lines = []
        for line in self._file.read().split(b"\n")[:-1]:  # a last line without an end is not whole
            try:
                lines.append(json.loads(line))
            except (ValueError, RecursionError):
                break
            whole += len(line) + 1
        self._file.truncate(whole)
        if not lines:
            return False
        before, *self.entries = lines
        if not isinstance(before, dict) or not all(map(_is_entry, self.entries)):
            raise UserError(f"{self.path} is not as this tool wrote it: remove it, or name another folder")
        if other := [name for name in settings if before.get(name) != settings[name]]:
            what = " and ".join(other)
            raise UserError(f"{self.path.parent} was begun with another {what}: give the same, or name another folder")
        return True

    def _write(self, entry: Mapping[str, Any]) -> None:
        line = json.dumps(entry).encode() + b"\n"
        try:
            if self._file.write(line) != len(line):
                raise OSError(28, "No space left on device")
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {why_not(error, self.path.parent)}") from None


def _is_entry(entry: Any) -> bool:
    kinds = {"image": dict, "annotations": list, "counts": dict, "segments": bool, "name": str, "files": list}
    return isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in kinds.items())


def _remove_partials(out: Path) -> None:
    """Remove what a killed run has left half written."""
    for path in _files(out):
        if path.name.startswith(PARTIAL) and path.name.endswith(".partial") and not why_no_file(path):
            path.unlink(missing_ok=True)


def _files(folder: Path) -> Iterator[Path]:
    for inside, _, names in os.walk(folder):
        yield from (Path(inside, name) for name in names)
