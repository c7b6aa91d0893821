"""Where Python looks for modules: not in the current folder, which may hold files of any origin."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path


def leave_current_folder() -> None:
    """Take off the path what ``python -m`` puts first on it, the current folder; a ``torch.py`` there is not run.

    The processes that a command starts (of ``torchrun``, of a dataloader, of the compiler) do likewise with Python 3.11
    or newer. What ``PYTHONPATH`` names stays. The folder in which this package itself was found becomes the last one: a
    module there replaces none that is installed.
    """
    if not getattr(sys.flags, "safe_path", False) and sys.path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]
        home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        if home == os.getcwd() and home not in sys.path:
            sys.path.append(home)
    os.environ["PYTHONSAFEPATH"] = "1"


def left_out(error: BaseException, folders: Iterable[Path]) -> str:
    """What to do about a module that an import did not find, if one of these folders has it; else an empty text."""
    for name in _missing_modules(error):
        for folder in dict.fromkeys(folder.resolve() for folder in folders):
            found = next((path for path in (folder / f"{name}.py", folder / name) if path.exists()), None)
            if found:
                return (
                    f"module {name!r} was not found, as the folder of {found} is not on Python's path: "
                    f"put PYTHONPATH={shlex.quote(str(folder))} before the command"
                )
    return ""


def _missing_modules(error: BaseException | None) -> Iterator[str]:
    """The modules that were not found, of an exception and of all that led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, ModuleNotFoundError) and error.name:
            yield error.name.partition(".")[0]
        error = error.__cause__ or error.__context__
