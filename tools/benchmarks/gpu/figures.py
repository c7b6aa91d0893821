"""The figures of several runs in one file: ``benchmarks_gpu.json``.

It has ``runs``, the last one first, each with its ``machine``, its ``date`` and, but for old ones, its ``turns`` (see
``measuring``), and ``records``. A record is of the last run, or of the one whose place in ``runs`` is its ``run``.
``benchmarks_gpu.jsonl`` holds one run, as it goes: a line that says what ``runs`` does, and one for each record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mm_vitbackbones.errors import UserError

from .cases import PARTS, Case, Task, tasks
from .contenders import BEFORE, CONTENDERS
from .planning import is_settled

NAME = "benchmarks_gpu"


def read_run(folder: Path) -> dict[str, Any] | None:
    """The run in a folder, with its ``records``; None if there is none. A record that was cut off while it was written
    is none. Of a task that was measured again, the last record counts."""
    path = folder / f"{NAME}.jsonl"
    if not path.is_file():
        return None
    try:
        first, *records = [json.loads(each) for each in path.read_text("utf-8").split("\n")[:-1] if each.strip()]
        last = {Task.from_json(record): record for record in records}
        return {name: first[name] for name in ("machine", "date", "turns", "trial")} | {"records": [*last.values()]}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no file of a run: remove it to start again") from None


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Adds a line, after the last one that is whole."""
    with path.open("ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(record).encode() + b"\n")


def read(folder: Path) -> dict[str, Any]:
    """All figures in a folder; no runs if there are none."""
    path = folder / f"{NAME}.json"
    data: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {"runs": [], "records": []}
    return data


def merged(run: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """A run and, in the places that it has no figure of, those of earlier runs, which keep the name of their run.

    A place is a contender in a case: its times and its kernels are of one run. As figures of two machines are not
    compared, a table of another machine stays as it is until a run has all of its contenders. What a run had to leave
    out takes the place of nothing. Merging a run twice changes nothing.
    """
    settled = [record for record in run["records"] if is_settled(record)]
    known = {*tasks(CONTENDERS, PARTS, before=True)}
    measured = {_place(record) for record in settled}
    tables = {_table(place) for place in measured}
    elsewhere = {
        _place(each) for each in others["records"] if others["runs"][each.get("run", 0)]["machine"] != run["machine"]
    }
    cut = {_table(place) for place in elsewhere - measured if place.contender != BEFORE} & tables
    new = [record for record in settled if _table(_place(record)) not in cut]
    measured = {_place(record) for record in new}
    kept = [each for each in others["records"] if _place(each) not in measured and Task.from_json(each) in known]
    used = sorted({each.get("run", 0) for each in kept})
    runs = [{name: run[name] for name in ("machine", "date", "turns")}, *(others["runs"][index] for index in used)]
    return {
        "runs": runs,
        "records": [*new, *({**each, "run": 1 + used.index(each.get("run", 0))} for each in kept)],
    }


def _place(record: Mapping[str, Any]) -> Task:
    task = Task.from_json(record)
    return Task(task.network, task.contender, task.part, task.case, "")


def _table(place: Task) -> tuple[str, str, Case]:
    return place.network, place.part, place.case
