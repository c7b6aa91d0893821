"""Take mmcv-lite out of the environment of the Python that runs this, before mmcv comes, and the other way round.

    python tools/setup/leave_mmcv.py --for lite|compiled

Both write the folder ``mmcv``: with both there, files of one are those of the other, and uninstalling one breaks the
other. So where the other one is there, both go, and with them the file of ``ops --install``, which pip does not know.
Needs the standard library and pip alone.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # the package is not installed yet
sys.path.insert(0, str(Path(__file__).parent))
import pinned

from mm_vitbackbones.errors import UserError
from mm_vitbackbones.mmcv_ops import lite

PACKAGES = {"lite": "mmcv-lite", "compiled": "mmcv"}


def installed() -> set[str]:
    """Which of the two packages pip knows."""

    def there() -> Iterator[str]:
        for name in PACKAGES.values():
            try:
                importlib.metadata.distribution(name)
            except importlib.metadata.PackageNotFoundError:
                continue
            yield name

    return {*there()}


def leave(kind: str) -> str | None:
    """Make room for a kind of mmcv; what stands in its way, if anything does."""
    before = installed()
    stays = before <= {PACKAGES[kind]}
    if lite.find().folder is not None and not (stays and kind == "lite"):
        lite.remove()
    if stays:
        return None
    print(f"Uninstalling {' and '.join(sorted(before))}", flush=True)
    if errors := pip_uninstall(before):
        return errors
    importlib.invalidate_caches()
    folder = lite.find().folder
    left = sorted(str(path) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc") if folder else []
    return f"{left[0]} belongs to no package: move it, and run make setup again" if left else None


def pip_uninstall(names: set[str]) -> str:
    return pinned.pip("uninstall", "--quiet", "--yes", *sorted(names))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--for", dest="kind", choices=PACKAGES, required=True)
    try:
        problem = leave(parser.parse_args(argv).kind)
    except UserError as error:
        problem = str(error)
    if problem:
        print(f"error: {problem}", file=sys.stderr)
    return int(bool(problem))


if __name__ == "__main__":
    sys.exit(main())
