"""The fields of a COCO-format file that the libraries read, and what they have to hold."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mm_vitbackbones.errors import UserError

DATASET = "mmdet's CocoDataset"
METRIC = "CocoMetric"
BOX_METRIC = "CocoMetric of boxes"
MASK_METRIC = "CocoMetric of masks"
"""Who reads a field. The metrics read by pycocotools."""

KINDS = ("images", "annotations", "categories")
SINGULAR = {"images": "image", "annotations": "annotation", "categories": "category"}
FURTHEST = 1e6
"""Pixels. Nothing of an image lies so far away, and no side is so long."""
LARGEST = float(np.finfo(np.float32).max)
"""Boxes are trained on as float32."""
CLAUSES = 4
"""A message lists so many kinds of faults."""


@dataclass(frozen=True)
class Field:
    """A field of each image, annotation or category.

    Attributes:
        of: one of ``KINDS``.
        fault: what is wrong with a value, in a few words such as ``null``; empty if nothing is.
        kind: what it has to be, for messages.
        readers: who cannot do without it.
        optional: who reads it where it is there, and takes null for its absence.
        index: it is read of every entry, and says which annotations count. The other fields are read of these alone.
        hint: what to write where it is missing, if that is simple.
    """

    of: str
    name: str
    fault: Callable[[Any], str]
    kind: str
    readers: tuple[str, ...]
    optional: tuple[str, ...] = ()
    index: bool = False
    hint: str = ""


def _found(value: Any) -> str:
    """What a value is, for messages."""
    if value is None:
        return "null"
    for kind, word in ((bool, "true or false"), (str, "text"), (list, "a list"), (dict, "a dict")):
        if isinstance(value, kind):
            return f"an empty {word.removeprefix('a ')}" if kind is not bool and not value else word
    return "NaN or infinite" if isinstance(value, float) and not math.isfinite(value) else "a number"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST  # not NaN


def _number(value: Any) -> str:
    if _is_number(value):
        return ""
    found = _found(value)
    return "too large" if found == "a number" else found


def _side(value: Any) -> str:
    return _number(value) or ("0 or less" if value <= 0 else f"above {FURTHEST:g}" if value > FURTHEST else "")


def _flag(value: Any) -> str:
    if isinstance(value, bool):
        return ""
    return _number(value) or ("" if value in (0, 1) else "a number other than 0 and 1")


def _text(value: Any) -> str:
    return "" if isinstance(value, str) and value else _found(value)


def _key(value: Any) -> str:
    """What entries are found by: a number, or text."""
    return "" if isinstance(value, str) else _number(value)


def _box(value: Any) -> str:
    if not isinstance(value, list) or not value:
        return _found(value)
    wrong = sorted({_number(number).replace("too large", "a number that is too large") for number in value} - {""})
    if wrong:
        return f"a list that holds {' and '.join(wrong)}"
    if len(value) != 4:
        return f"a list of {len(value)} numbers"
    if max(map(abs, value)) > FURTHEST:
        return f"further away or larger than {FURTHEST:g} pixels"
    return "of a width or height below 0" if min(value[2:]) < 0 else ""


FIELDS = (
    Field("images", "id", _key, "a number", (DATASET, METRIC), index=True),
    Field("images", "file_name", _text, "text", (DATASET,)),
    Field("images", "width", _side, "pixels", (DATASET, MASK_METRIC)),
    Field("images", "height", _side, "pixels", (DATASET, MASK_METRIC)),
    Field("annotations", "id", _key, "a number", (DATASET, METRIC), index=True),
    Field("annotations", "image_id", _key, "an image's id", (DATASET, METRIC), index=True),
    Field("annotations", "category_id", _key, "a category's id", (DATASET, METRIC), index=True),
    Field("annotations", "bbox", _box, "[x, y, width, height] in pixels", (DATASET, BOX_METRIC)),
    Field("annotations", "area", _number, "square pixels", (DATASET, METRIC), hint="width * height of its box"),
    Field("annotations", "iscrowd", _flag, "0 or 1", (METRIC,), optional=(DATASET,), hint="0"),
    Field("annotations", "ignore", _flag, "0 or 1", (), optional=(DATASET,), index=True),
    Field("categories", "id", _key, "a number", (DATASET, METRIC), index=True),
    Field("categories", "name", _text, "text", (DATASET, METRIC)),
)


def check_tables(content: Any, path: Path, where: str) -> dict[str, list[dict[str, Any]]]:
    """The three lists of a file, by their names; an empty one for annotations that are not there.

    Raises:
        UserError: if a list is missing, or is none of dicts.
    """
    wrong = f"{where}: {path} is not in COCO's format"
    if not isinstance(content, dict):
        raise UserError(f"{wrong}: it holds {_found(content)}, and not a dict with images, annotations and categories")
    tables = {kind: content.get(kind) for kind in KINDS}
    tables["annotations"] = content.get("annotations", [])
    for kind, entries in tables.items():
        if entries is None and kind not in content:
            raise UserError(f"{wrong}: it has no {kind}")
        if not isinstance(entries, list):
            raise UserError(f"{wrong}: its {kind} are {_found(entries)}, and not a list")
        odd = next((index for index, entry in enumerate(entries) if not isinstance(entry, dict)), None)
        if odd is not None:
            raise UserError(f"{wrong}: number {odd} of its {kind} is {_found(entries[odd])}, and not a dict")
    return tables  # type: ignore[return-value]  # no None is left


def check_fields(
    content: Mapping[str, Sequence[Mapping[str, Any]]],
    readers: Collection[str],
    counts: Callable[[Mapping[str, Any]], bool],
    path: Path,
    where: str,
) -> None:
    """Check the fields that some readers read, of annotations only where the annotation ``counts``.

    Raises:
        UserError: one line, with a clause for each kind of fault: how many there are, and the first one's id.
    """
    for index in (True, False):  # whether an annotation counts depends on what entries are found by
        faults: dict[tuple[Field, str], list[str]] = {}
        for of in KINDS:
            fields = [field for field in FIELDS if field.of == of and field.index == index and _reads(field, readers)]
            for number, entry in enumerate(content[of]):
                if index or of != "annotations" or counts(entry):
                    for field in fields:
                        if fault := _fault(field, entry, readers):
                            faults.setdefault((field, fault), []).append(_named(entry, number))
        if faults:
            clauses = [_clause(*kind, entries, readers) for kind, entries in faults.items()]
            rest = f"; and {len(clauses) - CLAUSES} more kinds of faults" if len(clauses) > CLAUSES else ""
            raise UserError(f"{where}: {path} cannot be read: {'; '.join(clauses[:CLAUSES])}{rest}")


def _reads(field: Field, readers: Collection[str]) -> bool:
    return not {*field.readers, *field.optional}.isdisjoint(readers)


def _fault(field: Field, entry: Mapping[str, Any], readers: Collection[str]) -> str:
    value = entry.get(field.name)
    if value is None:
        if {*field.readers}.isdisjoint(readers):
            return ""
        return "null" if field.name in entry else "missing"
    return field.fault(value)


def _named(entry: Mapping[str, Any], index: int) -> str:
    own = entry.get("id")
    return f"id {own!r}" if _key(own) == "" and own is not None else f"number {index} of the list"


def _clause(field: Field, fault: str, entries: Sequence[str], readers: Collection[str]) -> str:
    state = f"without {field.name}" if fault == "missing" else f"whose {field.name} is {fault}"
    entry = SINGULAR[field.of] if len(entries) == 1 else field.of
    reader = next(reader for reader in (*field.readers, *field.optional) if reader in readers)
    hint = f", and {field.hint} will do" if field.hint and fault in ("missing", "null") else ""
    first = "" if len(entries) == 1 else "the first is "
    return f"{len(entries)} {entry} {state} ({first}{entries[0]}; {reader} reads {field.kind}{hint})"


def check_unique(content: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, where: str) -> None:
    """Check that no id is there twice: mmdet and pycocotools find entries by their ids, and would take the last."""
    for of in KINDS:
        twice = [key for key, count in Counter(entry["id"] for entry in content[of]).items() if count > 1]
        if twice:
            listed = ", ".join(map(repr, twice[:5])) + (f" and {len(twice) - 5} more" if len(twice) > 5 else "")
            word = "id" if len(twice) == 1 else "ids"
            raise UserError(
                f"{where}: {path} has several {of} of the same id, {word} {listed}: give each {SINGULAR[of]} an id of "
                "its own"
            )


def check_sortable(content: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, where: str) -> None:
    """Check that NumPy, by which pycocotools sorts ids, keeps them as they are: it turns numbers among text into text,
    and rounds whole numbers of more than 63 bits."""
    for of in ("images", "categories"):
        ids = {entry["id"] for entry in content[of]}
        kept = {*np.unique(np.array(list(ids))).tolist()} if ids else ids
        if kept != ids:
            raise UserError(
                f"{where}: pycocotools cannot sort the ids of the {of} of {path}, such as "
                f"{min(ids - kept, key=str)!r}: use whole numbers below 2**63"
            )
