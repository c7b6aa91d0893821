"""The pages of the documentation: their links, tables and blocks of code."""

from __future__ import annotations

import re

import pytest

from helpers.pages import PAGES, anchors, blocks, inline, path_of, tables, targets, tokens
from helpers.paths import ROOT
from mm_vitbackbones.__main__ import COMMANDS
from mm_vitbackbones.build import families

LANGUAGES = {"bash", "python", "text", "bibtex"}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings_that_are_there(page: str) -> None:
    broken = []
    for target in targets(page):
        if target.startswith(("http://", "https://")):
            continue
        name, _, heading = target.partition("#")
        path = (path_of(page).parent / name if name else path_of(page)).resolve()
        if not path.exists() or (heading and heading not in anchors(str(path.relative_to(ROOT)))):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_rendered_as_tables(page: str) -> None:
    """A row with too few cells is filled in silence, one with too many is cut; a broken table is shown as text."""
    text = [token.content for token in tokens(page) if token.type == "inline"]
    assert [content for content in text if content.startswith("|")] == []
    lines = path_of(page).read_text("utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == sum(len(table) + 1 for table in tables(page))  # and a rule below each head
    for start, line in enumerate(lines):
        if re.fullmatch(r"\|( --- \|)+", line):
            width, row = line.count("|"), start - 1
            while row < len(lines) and lines[row].startswith("|"):
                assert re.sub(r"\\\|", "", lines[row]).count("|") == width, f"{page}:{row + 1}"
                row += 1


@pytest.mark.parametrize("page", PAGES)
def test_blocks_of_code_say_their_language(page: str) -> None:
    assert [block.where for block in blocks(page) if block.language not in LANGUAGES] == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_exist(page: str) -> None:
    code = " ".join(token.content for token in inline(page) if token.type == "code_inline")
    named = set(re.findall(r"python -m mm_vitbackbones (\w+)", code)) - {"COMMAND"}
    assert named - {*COMMANDS, "doctor", "help"} == set()
    for path in set(re.findall(r"tools/\w+\.(?:py|sh)", code)) - {"tools/COMMAND.py"}:
        assert (ROOT / path).is_file(), path


def test_the_readme_is_one_that_is_read() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def test_the_numbers_on_the_first_page_are_measured_ones() -> None:
    claims = next(table for table in tables("README.md") if table[0][0] == "measured")[1:]
    assert len(claims) == 3
    measured = "".join(path.read_text("utf-8") for path in (ROOT / "docs").glob("benchmarks*.md"))
    numbers = {number for row in claims for cell in row[1:] for number in re.findall(r"(\d[\d.]*) (?:ms|MiB)", cell)}
    assert len(numbers) >= 6
    assert [number for number in numbers if f"| {number} |" not in measured] == []


def test_the_readme_has_a_row_for_each_family() -> None:
    rows = next(table for table in tables("README.md") if table[0][0] == "`type`")[1:]
    assert sorted(row[0] for row in rows) == sorted(f"`mm_vitbackbones.{name}`" for name in families())
    of_variants: dict[str, list[list[str]]] = {}
    for cells in next(table for table in tables("docs/backbones.md") if table[0][0] == "`type`")[1:]:
        of_variants.setdefault(cells[0] or [*of_variants][-1], []).append(cells)
    for kind, sizes, parameters, top1, _, paper in rows:
        variants = of_variants[kind]
        assert int(sizes.split(",")[0]) == sum(cells[1].count("`") // 2 for cells in variants)
        for cell, column in ((parameters, 3), (top1, 6)):
            every = [x for cells in variants for x in re.sub(r"\(.*?\)", "", cells[column]).split(", ")]
            known = [float(x) for x in every if x != "-"]
            assert cell == (f"{min(known)} to {max(known)}" if known else "-")
        assert paper == variants[0][7]
