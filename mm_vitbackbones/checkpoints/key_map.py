"""Renaming of state-dict keys by a table of template pairs that works in both directions.

A template is a key with integers left open: ``block{stage+1}.{block}.`` stands for ``block1.0.``, ``block1.1.``,
``block2.0.`` and so on. ``{stage+1}`` is the number that is one more than ``stage``; the numbers themselves begin at 0.
A template that ends in a dot is a prefix, and the rest of the key is kept; any other is a whole key.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping

_PLACEHOLDER = re.compile(r"\{([a-z_]+)(?:\+(\d+))?\}")


class _Template:
    """One side of a pair."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.is_prefix = text.endswith(".")
        self.offsets = {name: int(offset or 0) for name, offset in _PLACEHOLDER.findall(text)}
        literals = _PLACEHOLDER.split(text)[::3]
        if len(self.offsets) != len(literals) - 1 or any(set(literal) & set("{}") for literal in literals):
            raise ValueError(f"template {text!r}: a placeholder is {{name}} or {{name+1}}, and each comes once")
        number = r"(0|[1-9][0-9]*)"  # no leading zeros, so that every key has one reading
        self._pattern = re.compile(number.join(map(re.escape, literals)) + (r"(.+)" if self.is_prefix else ""))

    def match(self, key: str) -> tuple[dict[str, int], str] | None:
        """The numbers in the key and the rest after the template, or None for a key of another form."""
        if not (found := self._pattern.fullmatch(key)):
            return None
        numbers = {
            name: int(group) - offset
            for (name, offset), group in zip(self.offsets.items(), found.groups(), strict=False)
        }
        return None if any(n < 0 for n in numbers.values()) else (numbers, found.groups()[-1] if self.is_prefix else "")

    def fill(self, numbers: Mapping[str, int], rest: str = "") -> str:
        """The key with these numbers."""
        return _PLACEHOLDER.sub(lambda m: str(numbers[m[1]] + self.offsets[m[1]]), self.text) + rest


class KeyMap:
    """Pairs of templates, (theirs, ours).

    Raises:
        ValueError: for a malformed template, for a pair whose sides have other placeholders or are not both a prefix
            or both a whole key, and for two templates of one side that fit the same key.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self.pairs = tuple(pairs)
        self._pairs = [(_Template(theirs), _Template(ours)) for theirs, ours in self.pairs]
        for theirs, ours in self._pairs:
            if theirs.offsets.keys() != ours.offsets.keys() or theirs.is_prefix != ours.is_prefix:
                raise ValueError(f"the templates {theirs.text!r} and {ours.text!r} do not hold the same parts")
        for side in zip(*self._pairs, strict=True):
            _check_disjoint(side)

    def to_ours(self, key: str) -> str | None:
        """Our name of their key, or None if the table has none."""
        return _rename(key, self._pairs)

    def to_theirs(self, key: str) -> str | None:
        """Their name of our key, or None if the table has none."""
        return _rename(key, [(ours, theirs) for theirs, ours in self._pairs])


def under(theirs: str, ours: str, pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs with a prefix before each side."""
    return [(theirs + inner_theirs, ours + inner_ours) for inner_theirs, inner_ours in pairs]


def _rename(key: str, pairs: Iterable[tuple[_Template, _Template]]) -> str | None:
    names = {target.fill(*match) for source, target in pairs if (match := source.match(key))}
    if len(names) > 1:
        raise ValueError(f"the key {key!r} fits several templates, which make of it {sorted(names)}")
    return names.pop() if names else None


def _check_disjoint(templates: tuple[_Template, ...]) -> None:
    """Tries the keys of each template, with small and large numbers, on all the others."""
    for template, other in itertools.permutations(templates, 2):
        for numbers in itertools.product((0, 1, 2, 10), repeat=len(template.offsets)):
            key = template.fill(dict(zip(template.offsets, numbers, strict=True)), "weight" * template.is_prefix)
            if other.match(key):
                raise ValueError(f"the templates {template.text!r} and {other.text!r} both fit {key!r}")
