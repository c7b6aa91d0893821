"""The pages of the documentation, as a Markdown reader sees them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from helpers.paths import ROOT

PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "NOTICE.md",
    *sorted(f"docs/{x.name}" for x in (ROOT / "docs").glob("*.md")),
)


@dataclass(frozen=True)
class Block:
    """A block of code."""

    page: str
    line: int
    """Of its first fence, from 1."""
    language: str
    """What stands after the fence; ``indented`` for a block without fences."""
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file_name(self) -> str | None:
        """The name of the file that it is: its first line says so."""
        found = re.match(r"# ([\w/]+\.py)\b", self.text)
        return found[1] if found and self.language == "python" else None

    @property
    def commands(self) -> list[str]:
        """The lines of a shell block, those that go on joined."""
        lines = self.text.replace("\\\n", " ").splitlines() if self.language == "bash" else []
        return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


@functools.cache
def tokens(page: str) -> list[Token]:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse((ROOT / page).read_text("utf-8"))


def blocks(page: str) -> list[Block]:
    return [
        Block(page, (token.map or [0])[0] + 1, token.info or ("indented" * (token.type == "code_block")), token.content)
        for token in tokens(page)
        if token.type in ("fence", "code_block")
    ]


def inline(page: str) -> Iterator[Token]:
    """What stands in the text: words, inline code, links, images."""
    for token in tokens(page):
        yield from token.children or ()


def targets(page: str) -> set[str]:
    """Where the links lead, and where the images are."""
    found = {str(token.attrs.get("href") or token.attrs.get("src") or "") for token in inline(page)}
    return found - {""}


def anchors(page: str) -> set[str]:
    """The names of a page's headings, as GitHub makes them."""
    content = tokens(page)
    titles = [content[i + 1].content for i, token in enumerate(content) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def tables(page: str) -> list[list[list[str]]]:
    """The cells of each row of each table, the head first."""
    found: list[list[list[str]]] = []
    before = ""
    for token in tokens(page):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif before in ("td_open", "th_open"):
            found[-1][-1].append(token.content)
        before = token.type
    return found


def path_of(page: str) -> Path:
    return ROOT / page


@dataclass(frozen=True)
class ModelOfLibrary:
    """A row of the table of MMDetection's and MMSegmentation's models."""

    config: str
    """Of the library, without its suffix."""
    plain: str
    """What the model does on plain operators."""
    compiled: str
    """What it finds on compiled operators, compared with that."""


@functools.cache
def models_of_libraries() -> dict[str, ModelOfLibrary]:
    """The rows of ``docs/detectors.md`` by the name of the model."""
    found = tables("docs/detectors.md")[:2]
    return {name: ModelOfLibrary(config.strip("`"), *rest) for _, *rows in found for name, config, *rest in rows}
