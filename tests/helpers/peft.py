"""peft, for the tests of adapters: of the environment, or of a folder of its own next to it (``make test``).

It is not in the environment, as MMDetection imports transformers, which peft needs, wherever that is installed: each
program would start later.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FOLDER = Path(sys.prefix, "adapters")
IS_THERE = importlib.util.find_spec("peft") is not None or (FOLDER / "peft").is_dir()

needs_peft = pytest.mark.skipif(not IS_THERE, reason="peft is not installed: `make test` installs it")


@contextmanager
def importable() -> Iterator[None]:
    """Within it, peft can be imported, and is."""
    sys.path.append(str(FOLDER))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of what it imports
            importlib.import_module("peft")
        yield
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def peft() -> Iterator[None]:
    """peft, for the tests of a module, which import this fixture."""
    with importable():
        yield
