"""JSON files of annotations, read so that nothing in them is lost in silence."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mm_vitbackbones import limits
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.files import why_no_file


def read_json(path: Path, encoding: str = "utf-8") -> tuple[Any, str]:
    """The content of a file, and the first key that one of its objects has twice, if any: of such, readers of JSON keep
    the last one.

    Raises:
        UserError: it is no file, or too large.
        ValueError: it is no JSON.
        RecursionError: it is nested too deeply.
        OSError: it cannot be read.
    """
    if kind := why_no_file(path):
        raise UserError(f"{path} is {kind}, and no file")
    if why := limits.ANNOTATIONS.exceeded(os.path.getsize(path)):
        raise UserError(f"{path} has {why}")
    doubled = ""

    def entry(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal doubled
        content = dict(pairs)
        if len(content) < len(pairs) and not doubled:
            keys = [key for key, _ in pairs]
            doubled = next(key for key in keys if keys.count(key) > 1) or '""'
        return content

    return json.loads(path.read_text(encoding=encoding), object_pairs_hook=entry), doubled


def why_doubled(path: Path, key: str) -> str:
    """What is wrong with a file that has a key twice in one object."""
    return (
        f"{path} has an entry with the key {key!r} twice, of which every reader keeps the last one alone: remove one "
        "of them"
    )
