"""Files that are written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def write_whole(path: Path, content: bytes) -> None:
    """Write next to the file and rename, so that a run that is stopped leaves no half of it."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(content)
        settle(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


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
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        names = []
    else:
        names = [name for name in listed.stdout.split("\0") if name]
    files = [folder / name for name in names] or folder.rglob("*")
    return sorted(path for path in files if path.is_file())
