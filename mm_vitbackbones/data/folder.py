"""A folder that this package makes. It must not touch the user's files in it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from mm_vitbackbones.errors import UserError
from mm_vitbackbones.files import check_room, make_folder, sha256, write_whole

MARKER = ".made_by_mm_vitbackbones.json"


class OwnedFolder:
    """A folder whose marker file lists what was written there, so that nothing else is ever overwritten.

    The marker is written first, before any other file, and names every file to come. The SHA-256 of each file is added
    when the folder is complete. A run that was interrupted can therefore be repeated, and a file that was changed since
    is recognised as the user's. A marker is not believed: what it lists is only read or removed inside of the folder,
    and only where no link leads out of it.

    Args:
        root: the folder. It may exist already, if it is empty or carries this marker.
        dataset: what is kept here.
        version: changes when the files have to be made again.

    Raises:
        UserError: the folder holds a file that this package did not make.
    """

    def __init__(self, root: str | os.PathLike[str], dataset: str, version: int) -> None:
        self.root = Path(root)
        self._marker = self.root / MARKER
        self._claim = {"made_by": "mm_vitbackbones", "dataset": dataset, "version": version}
        self._known: dict[str, str | None] = {}
        self._same_version = False
        if self.root.exists() and not self.root.is_dir():
            raise UserError(f"{self.root} is not a folder: choose another one with --out")
        if self._marker.is_file():
            self._read_marker(dataset)
        elif self.root.is_dir() and any(self.root.iterdir()):
            raise UserError(
                f"{self.root} was not made by this tool, and is left as it is: "
                "move it away, or choose another folder with --out"
            )

    def is_current(self, files: Collection[str] = ()) -> bool:
        """Whether these files (all that the marker lists, if none are named) are here, of this version, unchanged."""
        files = files or self._known
        return self._same_version and bool(files) and all(self._is_ours(name) is True for name in files)

    def claim(self, files: Collection[str]) -> None:
        """Write the marker for these files, which may then be written. Files of an older version are deleted, if they
        are as they were written.

        Raises:
            UserError: one of the files exists and is not ours, or was changed since, or is reached through a link;
                nothing has been written then.
        """
        kept = [name for name in {*self._known, *files} if self._is_ours(name) is False]
        if kept:
            raise UserError(
                f"{self.root / min(kept)} is not as this tool wrote it, and is left as it is: "
                "move it away, or choose another folder with --out"
            )
        self.check_room(sum(map(len, files.values())) if isinstance(files, Mapping) else 1)
        make_folder(self.root)
        stale = [] if self._same_version else [name for name in self._known if name not in set(files)]
        self._known |= dict.fromkeys(files)
        self._write_marker()
        for name in stale:
            if self._is_ours(name):
                (self.root / name).unlink()
            del self._known[name]

    def check_room(self, size: int) -> None:
        """Check that so many bytes can be written to the folder.

        Raises:
            OutputError: they cannot.
        """
        check_room(self.root, f"--out {self.root}", size)

    def write(self, name: str, content: bytes) -> None:
        """Write one of the claimed files: whole, or not at all."""
        if name not in self._known:
            raise ValueError(f"{name} was not claimed")
        path = self.root / name
        if self._is_linked(name):
            raise UserError(f"{path} would be written through a link: move it away, or choose another folder")
        make_folder(path.parent)
        write_whole(path, content)
        self._known[name] = hashlib.sha256(content).hexdigest()

    def finish(self) -> None:
        """Record that all claimed files have been written."""
        self._write_marker()

    def _is_ours(self, name: str) -> bool | None:
        """True: complete and unchanged. None: not there, or from an interrupted run. False: the user's."""
        path = self.root / name
        if self._is_linked(name):
            return False
        if not path.exists():
            return None
        if name not in self._known:
            return False
        digest = self._known[name]
        return None if digest is None else path.is_file() and sha256(path) == digest

    def _is_linked(self, name: str) -> bool:
        """Whether a file, or one of its folders below the root, is a link."""
        path = Path(name)
        return any((self.root / part).is_symlink() for part in (path, *path.parents) if part != Path())

    def _read_marker(self, dataset: str) -> None:
        try:
            marker = json.loads(self._marker.read_text(encoding="utf-8"))
            found, self._known = marker["dataset"], dict(marker["files"])
            self._same_version = marker["version"] == self._claim["version"]
        except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
            raise UserError(f"{self._marker} cannot be read ({error!r}): move {self.root} away and run again") from None
        for name, digest in self._known.items():
            if not _is_inside(name) or not (digest is None or isinstance(digest, str)):
                raise UserError(
                    f"{self._marker} lists {name!r}, which this tool did not write, and nothing is removed: move "
                    f"{self.root} away and run again"
                )
        if found != dataset:
            raise UserError(f"{self.root} holds the data set {found!r}: choose another folder with --out")

    def _write_marker(self) -> None:
        marker = {**self._claim, "files": dict(sorted(self._known.items()))}
        write_whole(self._marker, json.dumps(marker, indent=0).encode())


def _is_inside(name: Any) -> bool:
    """Whether a name of a marker is that of a file in its folder, as this package writes it."""
    if not isinstance(name, str) or not name or "\\" in name or "\0" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and str(path) == name and name not in (".", MARKER)


def to_json(content: Any) -> bytes:
    """JSON, the same bytes for the same content on every machine."""
    return (json.dumps(content, separators=(",", ":")) + "\n").encode()
