"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import math
import os
import secrets
import shutil
import stat
import subprocess
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from mm_vitbackbones.errors import OutputError, printable

if TYPE_CHECKING:
    import numpy as np

PARTIAL = ".mm_vitbackbones-"
"""How the name of a file begins that is being written. A run that is killed may leave one."""

LONGEST_NAME = 255
"""Bytes of a file's name, on nearly every file system."""

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}


def write_whole(path: Path, content: bytes, replace: bool = True) -> None:
    """Write a file, so that a run that is stopped or meets a full disk leaves all of it or nothing.

    Args:
        replace: take the place of a file that is there already.

    Raises:
        FileExistsError: one is there, without ``replace``.
        OutputError: it cannot be written; nothing of it is left, and a file that was there is as before.
    """
    with whole_file(path, replace) as file:
        file.write(content)


def write_new(path: Path, content: bytes) -> None:
    """``write_whole`` of a file that is not there.

    Raises:
        OutputError: it is there, or cannot be written.
    """
    try:
        write_whole(path, content, replace=False)
    except FileExistsError:
        raise OutputError(f"{path} is there already, and nothing is overwritten: name another file") from None


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """``write_new`` of files by their names in a folder; folders are made.

    Raises:
        OutputError: one is there, or cannot be written.
    """
    for name, content in files.items():
        make_folder((folder / name).parent)
        write_new(folder / name, content)


@contextlib.contextmanager
def whole_file(path: Path, replace: bool = True) -> Iterator[BinaryIO]:
    """A file to write to. Only at the end, and after no error, it gets its name. See ``write_whole``.

    It is written next to its place, under a name that nobody can know before, and that is made here or not at all: a
    link of this name is not followed.
    """
    partial = path.parent / f"{PARTIAL}{secrets.token_hex(8)}.partial"
    raw = None
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        raw = _Recording(os.open(partial, flags, 0o666), "wb")
        with io.BufferedWriter(raw) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(partial, path)
        else:
            _rename_new(partial, path)
    except FileExistsError:
        raise
    except Exception as error:
        cause = error if isinstance(error, OSError) else raw.error if raw else None
        if cause is None:
            raise
        raise OutputError(f"{path} cannot be written: {why_not(cause, path.parent)}") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


class _Recording(io.FileIO):
    """A file that keeps why it could not be written: torch.save raises another error."""

    error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            self.error = error
            raise


def make_folder(path: Path) -> None:
    """Make a folder, and those around it, where they are not there.

    Raises:
        OutputError: it is not possible.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {path} cannot be made: {why_not(error, path.parent)}") from None


@contextlib.contextmanager
def scratch_in(folder: Path) -> Iterator[Path]:
    """A folder for files on the way, on the disk that ``folder`` is on: TMPDIR may have no room. It is removed at the
    end.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        scratch = tempfile.TemporaryDirectory(prefix=PARTIAL, dir=folder, ignore_cleanup_errors=True)
    except OSError as error:
        raise OutputError(f"nothing can be written to {folder}: {why_not(error, folder)}") from None
    with scratch as made:
        yield Path(made)


def move_new(source: Path, path: Path) -> None:
    """Give a file another name on the same file system. A file of this name is not replaced.

    Raises:
        FileExistsError: there is one.
        OutputError: it is not possible.
    """
    try:
        _rename_new(source, path)
    except FileExistsError:
        raise
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {why_not(error, path.parent)}") from None


def _rename_new(source: Path, path: Path) -> None:
    try:
        os.link(source, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.rename(source, path)
    else:
        os.unlink(source)


def why_not(error: OSError, folder: Path) -> str:
    """Why something cannot be written, in a few words. For a full disk with the space that is free."""
    words = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with contextlib.suppress(OSError):
            words += f" ({size_words(shutil.disk_usage(folder).free)} are free)"
    return words


def check_room(folder: Path, option: str, needed: int = 0) -> None:
    """Check that files can be written into a folder, which may not be there yet. Nothing is made.

    Args:
        option: where the folder comes from, such as ``--out DIR``, for messages.
        needed: bytes that will be written at least.

    Raises:
        OutputError: it is no folder, or may not be written to, or has no room.
    """
    place = folder.absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise OutputError(f"{option}: {place} is no folder: name another one")
    if not os.access(place, os.W_OK | os.X_OK):
        why = "is on a read-only disk, or belongs to somebody else"
        raise OutputError(f"{option}: nothing can be written to {place}, which {why}: name another folder")
    try:
        free = shutil.disk_usage(place).free
    except OSError:
        return  # writing says so
    if free < needed or not free:
        raise OutputError(
            f"{option}: {size_words(free)} are free in {place}, and at least {size_words(needed)} are needed: make "
            "room, or name a folder on another disk"
        )


def size_words(count: int) -> str:
    """A number of bytes in a unit that fits."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("kiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def why_no_file(path: str | Path) -> str:
    """What is in the place of a file that is not one, such as "a named pipe", which would be waited for; empty for a
    file, and where nothing is."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return ""
    return "" if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "no file")


def own_names(names: Iterable[str], endings: Sequence[str], taken: Iterable[str] = ()) -> list[str]:
    """For each name one that no other has, as a path relative to a folder, with ``/``.

    The files of a name are those with each ending. None of them has the name of another, nor one that differs from it
    by case or by Unicode's form alone, which some file systems take for the same; nor that of another one's folder. A
    name that is too long is cut.

    Args:
        names: without endings.
        endings: such as ``.png`` and ``_labels.png``.
        taken: paths that are not given to anything.
    """
    listed = [_short(name, endings) for name in names]
    folders = {_same(str(parent)) for name in listed for parent in PurePosixPath(name).parents}
    used = {_same(name) for name in taken}
    found = []
    for name in listed:
        own, number = name, 2
        while any(_same(f"{own}{ending}") in used | folders for ending in endings):
            own, number = _short(name, endings, f"_{number}"), number + 1
        used |= {_same(f"{own}{ending}") for ending in endings}
        found.append(own)
    return found


def _short(name: str, endings: Sequence[str], suffix: str = "") -> str:
    """A name, cut so that a file system takes it with each ending."""
    path = PurePosixPath(name)
    most = LONGEST_NAME - max(len(os.fsencode(ending)) for ending in endings) - len(suffix)
    stem = path.name
    while len(os.fsencode(stem)) > most:
        stem = stem[:-1]
    return str(path.with_name(stem + suffix)) if stem + suffix != path.name else name


def _same(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def settle(partial: Path, path: Path) -> None:
    """Give a file that is written whole its name, in the same folder, in place of any file of that name. What is on the
    disk is one of the two, also after a crash of the machine."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def to_png(image: np.ndarray) -> bytes:
    """A PNG file of an image in OpenCV's order: (H, W) gray, (H, W, 3) BGR or (H, W, 4) BGRA, uint8."""
    import cv2

    return cv2.imencode(".png", image)[1].tobytes()


def to_jpeg(image: np.ndarray, quality: int) -> bytes:
    """A JPEG file of an image in OpenCV's order: (H, W) gray or (H, W, 3) BGR, uint8.

    Args:
        quality: from 0 to 100.
    """
    import cv2

    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def to_csv(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """A CSV file in UTF-8, its lines ended by a line feed. A cell with a comma, a quote or a line end is quoted.

    Numbers have all their digits. Nothing is in a cell of None, and in that of a number that is not finite. Texts are
    ``printable``.
    """
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([*map(_cell, row)] for row in (head, *rows))
    return file.getvalue().encode()


def _cell(value: Any) -> str:
    value = value.item() if hasattr(value, "item") else value  # of NumPy
    missing = value is None or (isinstance(value, float) and not math.isfinite(value))
    return "" if missing else printable(value)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def tracked(folder: Path) -> list[Path]:
    """The files in a folder that git knows, in order; all of them where there is no git, or where it knows none, as in
    a copy within another repository. What a user puts among them is left out."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=folder, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        names = []
    else:
        names = [name for name in os.fsdecode(listed.stdout).split("\0") if name]
    files = [folder / name for name in names] or folder.rglob("*")
    return sorted(path for path in files if path.is_file())
