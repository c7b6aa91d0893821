"""What mmcv is there, and a file ``mmcv/_ext.py`` that gives mmcv-lite the plain operators in every program.

mmcv is looked for and not imported; nor is torch.
"""

from __future__ import annotations

import enum
import importlib
import importlib.util
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from mm_vitbackbones.errors import UserError
from mm_vitbackbones.files import write_whole

CONTENT = """\
# mmcv's operators in plain PyTorch. Written by `python -m mm_vitbackbones ops --install`; `--remove` takes it away.
import sys, mm_vitbackbones.mmcv_ops.extension as extension
sys.modules[__name__] = extension.module()
"""
MARK = CONTENT.partition(".")[0].encode()
"""How a file of ours begins, of this version or of another."""


class State(enum.Enum):
    """What there is of ``mmcv._ext``. The value says it in words."""

    ABSENT = "mmcv is not installed"
    NO_OPS = "this mmcv has no folder ops: it is older than mmcv-lite 2, or incomplete"
    MISSING = "mmcv-lite, without operators of its own"
    PLAIN = "mmcv-lite with the operators of mm_vitbackbones, in plain PyTorch"
    COMPILED = "mmcv with its compiled operators"
    FOREIGN = "mmcv with an extension that is neither compiled nor ours"


@dataclass(frozen=True)
class Found:
    """The state; mmcv's folder, where there is one, be it what an uninstalled mmcv left; and the file of the extension,
    where there is one."""

    state: State
    folder: Path | None = None
    extension: Path | None = None


def find() -> Found:
    """Look for mmcv and for its extension in the way in which Python imports them."""
    try:
        spec = importlib.util.find_spec("mmcv")
    except (ImportError, ValueError):  # ValueError: a module in sys.modules that has no spec
        spec = None
    if spec is None or not spec.submodule_search_locations:
        return Found(State.ABSENT)
    folders = list(spec.submodule_search_locations)
    folder = Path(folders[0])
    if spec.origin is None:  # a folder without __init__.py: what is left of it
        return Found(State.ABSENT, folder)
    extension = PathFinder.find_spec("mmcv._ext", folders)
    if extension is not None and extension.origin is not None:
        path = Path(extension.origin)
        if path.suffix != ".py":
            return Found(State.COMPILED, folder, path)
        return Found(State.PLAIN if _is_ours(path) else State.FOREIGN, folder, path)
    return Found(State.MISSING if (folder / "ops").is_dir() else State.NO_OPS, folder)


def install() -> Path:
    """Write ``mmcv/_ext.py`` and return its path. Doing it again changes nothing.

    Raises:
        UserError: there is no mmcv, it has an extension that is not ours, or the folder cannot be written to.
    """
    found = find()
    if found.folder is None or found.state is State.ABSENT:
        raise UserError(f"{found.state.value}: pip install mmcv-lite==2.1.0")
    if found.state is State.NO_OPS:
        raise UserError(f"{found.state.value}: pip install mmcv-lite==2.1.0 ({found.folder})")
    if found.state in (State.COMPILED, State.FOREIGN):
        raise UserError(f"nothing to install, this is {found.state.value}: {found.extension}")
    path = found.folder / "_ext.py"
    try:
        if path.is_symlink() or (path.exists() and not _is_ours(path)):
            raise UserError(f"{path} is not a file of ours, and is left as it is")
        write_whole(path, CONTENT.encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    importlib.invalidate_caches()
    return path


def remove() -> Path | None:
    """Take ``mmcv/_ext.py`` away where it is ours, and return its path; None where there is none. Where mmcv itself was
    uninstalled before, its folder goes, too.

    Raises:
        UserError: the file is not ours, or cannot be removed.
    """
    found = find()
    if found.folder is None:
        raise UserError(f"{found.state.value}: there is nothing to remove")
    path = found.folder / "_ext.py"  # it may lie next to a compiled extension, which Python prefers
    if not path.exists():
        return None
    if path.is_symlink() or not _is_ours(path):
        raise UserError(f"{path} is not a file of ours, and is left as it is")
    try:
        path.unlink()
        compiled = Path(importlib.util.cache_from_source(str(path)))
        compiled.unlink(missing_ok=True)
        for folder in (compiled.parent, found.folder):  # of an mmcv that was uninstalled before
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    except OSError as error:
        raise UserError(f"{path} cannot be removed: {error.strerror}") from None
    importlib.invalidate_caches()
    return path


def _is_ours(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(MARK)) == MARK
    except OSError:
        return False
