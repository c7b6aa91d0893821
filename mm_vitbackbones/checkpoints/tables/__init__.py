"""What is known of the files of each family and head, as tables: the official names, and the published files."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any


def gather(name: str) -> list[Any]:
    """What the tables have under a name, in alphabetical order of the tables. A new table is found by its place."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return [getattr(module, name) for module in modules if hasattr(module, name)]
