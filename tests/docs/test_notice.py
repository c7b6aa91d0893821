"""Whose the images and the data in the repository are."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

from helpers.pages import tables
from helpers.paths import ROOT
from mm_vitbackbones.files import tracked

FOLDERS = ("docs", "tests", "mm_vitbackbones", "configs", "tools")


def is_text(path: Path) -> bool:
    try:
        return "\0" not in path.read_text("utf-8")
    except UnicodeDecodeError:
        return False


def entries() -> list[tuple[str, str]]:
    """The files that the notice names, as patterns, and the licence of each."""
    return [(name.strip("`"), licence) for name, _, licence in tables("NOTICE.md")[0][1:]]


def binaries() -> list[str]:
    found = (path for folder in FOLDERS for path in tracked(ROOT / folder) if "__pycache__" not in path.parts)
    return [str(path.relative_to(ROOT)) for path in found if not is_text(path)]


def test_every_image_and_data_file_has_one_entry_with_a_licence() -> None:
    names = binaries()
    assert len(names) > 10
    matching = {name: [licence for pattern, licence in entries() if fnmatch(name, pattern)] for name in names}
    assert {name: found for name, found in matching.items() if len(found) != 1 or not found[0]} == {}


def test_notice_names_no_file_that_is_not_there() -> None:
    assert [pattern for pattern, _ in entries() if not any(fnmatch(name, pattern) for name in binaries())] == []


def test_a_licence_of_others_is_there_in_full() -> None:
    text = (ROOT / "NOTICE.md").read_text("utf-8")
    others = [licence for _, licence in entries() if "as the code" not in licence]
    assert len(others) == 1
    assert "MIT License\n\nCopyright (c) 2019, Ben Weinstein\n" in text
    assert re.search(r"this permission notice shall be included.*SOFTWARE\.\n```", text, re.DOTALL)
