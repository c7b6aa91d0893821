"""A page of HTML in one file, which loads nothing: its style and figures are in it, and it has no script."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mm_vitbackbones.canvas import BLUE, GREEN, VERMILION
from mm_vitbackbones.errors import printable

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, "DejaVu Sans", sans-serif; margin: 0 auto; max-width: 1120px; padding: 0 14px 60px;
  color: #1a1a1a; background: #fff; overflow-wrap: break-word; }
h1 { font-size: 1.5em; margin: 0.8em 0 0.3em; }
h2 { font-size: 1.25em; margin: 1.8em 0 0.4em; border-bottom: 2px solid #0072b2; }
h3 { font-size: 1.05em; margin: 1.3em 0 0.3em; }
p { max-width: 75ch; margin: 0.4em 0; }
nav a { margin-right: 1em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; margin: 0.5em 0; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 8px; border-bottom: 1px solid #ddd; text-align: right; overflow-wrap: normal; }
th:first-child, td:first-child, .words { text-align: left; }
td.words { min-width: 6.5em; max-width: 22em; overflow-wrap: anywhere; }
thead th { background: #f2f5f8; vertical-align: bottom; }
tr.last td { font-weight: bold; border-top: 2px solid #888; }
img { max-width: 100%; height: auto; }
.wide img { max-width: none; }
@media (min-width: 1000px) { .wide img { max-width: 100%; } }
.key { display: flex; flex-wrap: wrap; gap: 6px 24px; padding: 0; list-style: none; }
.key b { font-size: 1.35em; display: block; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 8px; }
figure { margin: 0; }
figcaption { font-size: 13px; color: #333; }
.pair img { width: 100%; }
figure img { border: 1px solid #ccc; box-sizing: border-box; }
.pair svg { width: 100%; height: auto; display: block; background: #eee; }
.case { margin: 0.8em 0 1.6em; }
@media (max-width: 600px) { body { font-size: 14px; padding: 0 8px 40px; } th, td { padding: 2px 5px; } }
"""


def text(value: Any) -> str:
    """A value as text of a page: nothing of it is markup, and nothing changes the direction of writing."""
    return html.escape(printable(value))


def number(value: Any, digits: int = 3) -> str:
    """A number as it is shown; a dash for none."""
    if value is None or (isinstance(value, (float, np.floating)) and np.isnan(value)):
        return "-"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    return f"{value:.{digits}f}" if isinstance(value, (float, np.floating)) else str(value)


@dataclass
class Table:
    """Rows of values: on the page, and in a CSV file with all digits.

    Args:
        head: the names of the columns.
        last: whether the last row is a summary.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    last: bool = False

    def html(self) -> str:
        words = [isinstance(value, str) for value in self.rows[0]] if self.rows else [False] * len(self.head)
        kinds = [' class="words"' if each else "" for each in words]
        head = "".join(f"<th{kind}>{text(name)}</th>" for name, kind in zip(self.head, kinds, strict=True))
        body = []
        for place, row in enumerate(self.rows):
            kind = ' class="last"' if self.last and place == len(self.rows) - 1 else ""
            body.append(f"<tr{kind}>{''.join(map(_cell, row))}</tr>")
        joined = "\n".join(body)
        return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{joined}\n</tbody></table></div>'


def _cell(value: Any) -> str:
    kind = ' class="words"' if isinstance(value, str) else ""
    return f"<td{kind}>{text(number(value))}</td>"


def figure(svg: bytes, says: str) -> str:
    """A figure that narrow screens scroll. In an image, nothing in it can act on the page."""
    return f'<div class="wide">{still(svg, "svg+xml", says)}</div>'


def still(content: bytes, kind: str, says: str) -> str:
    """An image file of a kind such as ``png``."""
    data = base64.b64encode(content).decode()
    return f'<img alt="{text(says)}" src="data:image/{kind};base64,{data}">'


def side_by_side(*parts: str) -> str:
    """Next to each other, or below on a narrow screen."""
    return f'<div class="pair">{"".join(parts)}</div>'


def paragraph(words: str) -> str:
    return f"<p>{text(words)}</p>"


@dataclass
class Box:
    """A box that is drawn on an image.

    Args:
        corners: x, y, width and height, in pixels of the image.
        kind: ``missed``, ``false``, ``right`` or ``found``.
    """

    corners: Sequence[float]
    label: str
    kind: str


LINES = {"missed": VERMILION, "false": "#cc0077", "right": GREEN, "found": BLUE}
"""The colour of each kind of box."""


def drawing(jpeg: bytes | None, size: tuple[int, int], name: str, sides: Sequence[tuple[str, Sequence[Box]]]) -> str:
    """An image several times, with boxes drawn on it, under captions.

    Args:
        jpeg: the image, perhaps made smaller; None if it cannot be read.
        size: height and width of the image, in whose pixels boxes are.
        name: unique on the page; letters and digits.
        sides: the caption and the boxes of each.
    """
    height, width = size
    unit = max(height, width) / 100
    parts = []
    for place, (caption, boxes) in enumerate(sides):
        if jpeg is None:
            image = f'<text x="{unit}" y="{5 * unit}" font-size="{4 * unit}">the image cannot be read</text>'
        elif place == 0:
            data = base64.b64encode(jpeg).decode()
            image = (
                f'<image id="{name}" width="{width}" height="{height}" preserveAspectRatio="none" '
                f'href="data:image/jpeg;base64,{data}"/>'
            )
        else:
            image = f'<use href="#{name}"/>'
        drawn = "".join(_box(box, unit, width) for box in boxes)
        parts.append(
            f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="{text(caption)}">{image}{drawn}</svg>'
            f"<figcaption>{text(caption)}</figcaption></figure>"
        )
    return side_by_side(*parts)


def _box(box: Box, unit: float, width: int) -> str:
    x, y, w, h = (round(float(value), 2) for value in box.corners)
    thick = box.kind in ("missed", "false")
    dash = f' stroke-dasharray="{2 * unit:.2f} {unit:.2f}"' if box.kind == "missed" else ""
    color = LINES[box.kind]
    rect = (
        f'<rect class="{box.kind}" x="{x}" y="{y}" width="{w}" height="{h}" fill="none" stroke="{color}" '
        f'stroke-width="{(0.7 if thick else 0.35) * unit:.2f}"{dash}/>'
    )
    if not box.label:
        return rect
    size = 2.6 * unit
    anchor, at = ("end", min(x + w, width)) if x > 0.7 * width else ("start", max(x, 0.0))
    return (
        f'{rect}<text x="{at:.2f}" y="{max(y - 0.5 * unit, size):.2f}" font-size="{size:.2f}" font-weight="bold" '
        f'fill="{color}" stroke="#fff" stroke-width="{0.5 * unit:.2f}" paint-order="stroke" text-anchor="{anchor}">'
        f"{text(box.label)}</text>"
    )


@dataclass
class Page:
    """A page that is made from top to bottom."""

    title: str
    parts: list[str] = field(default_factory=list)
    sections: list[tuple[str, str]] = field(default_factory=list)

    def section(self, title: str) -> None:
        key = f"section{len(self.sections) + 1}"
        self.sections.append((key, title))
        self.parts.append(f'<h2 id="{key}">{text(title)}</h2>')

    def heading(self, title: str) -> None:
        self.parts.append(f"<h3>{text(title)}</h3>")

    def add(self, *parts: str | Table) -> None:
        self.parts += [part.html() if isinstance(part, Table) else part for part in parts]

    def say(self, *lines: str) -> None:
        self.parts += [paragraph(line) for line in lines]

    def key_numbers(self, values: Iterable[tuple[str, Any]]) -> None:
        items = "".join(f"<li><b>{text(number(value))}</b>{text(name)}</li>" for name, value in values)
        self.parts.append(f'<ul class="key">{items}</ul>')

    def render(self) -> str:
        links = " ".join(f'<a href="#{key}">{text(title)}</a>' for key, title in self.sections)
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        body = "\n".join(self.parts)
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{text(self.title)}</title><style>{STYLE}</style></head>\n"
            f"<body><h1>{text(self.title)}</h1>\n<nav>{links}</nav>\n{body}\n</body></html>\n"
        )
