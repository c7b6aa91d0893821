"""What is measured first: what the page lacks, then what it has of earlier runs; what no aim needs comes later.

The times of one table are compared with each other. So all contenders of a table are measured in one run: if one of
them is missing, all are measured again. What is compiled and did not fit the time or the card is missing, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .cases import Case, Task
from .measuring import OUT_OF_MEMORY

MISSING, EARLIER, LAST, MISSING_LATER, KNOWN_LATER = range(5)
"""Stages of a run: what no run has measured, what the last one has not, and what it has. Large images and compiled
inference come later, as no aim needs them, or none alone: they take the time of what is compiled for training."""

FIRST = frozenset(
    ("pvt_s", "pvt_v2_b2", "mit_b2", "swin_t", "coat_lite_s", "coat_mini", "pit_s", "segformer_b0", "segformer_b2")
)
"""Networks whose tables, compiled training included, are to fit a run of eight minutes. They come before the others."""

GIB_OF_A_PROCESS = 2.0
"""Of the card: what a process takes besides its tensors."""
GIB_OF_A_TRAINING = 12.0
"""The peak of a training of which no figure is known."""
SHARE_OF_COMPILING = 0.25
"""Of its peak that a process is counted with which compiles: it is there for a second of its minutes. Should several be
there at once, one of them is measured again."""

LEFT_OUT = "left out: "
"""Begins the failure of what took too long to compile."""

Place = tuple[str, str, Case]


def is_settled(record: Mapping[str, Any]) -> bool:
    """Whether another run may go without its task: it has figures, or fails by itself. A compilation that a limit has
    ended, of time or of the card's memory, says nothing of the code."""
    failure = record.get("failure", "")
    return not (record["part"] == "compiled" and (failure.startswith(LEFT_OUT) or failure == OUT_OF_MEMORY))


class Known:
    """The figures there are, of any machine: what a run goes by.

    Args:
        records: with ``run`` where a figure is of an earlier run than the last one.
    """

    def __init__(self, records: Iterable[Mapping[str, Any]]) -> None:
        self._runs: dict[Task, int] = {}
        self._peaks: dict[tuple[str, str, str, Case], float] = {}
        for record in records:
            task = Task.from_json(record)
            if is_settled(record):
                self._runs[task] = record.get("run", 0)
            if "peak_mib" in record:
                self._peaks[(task.network, task.contender, task.part, task.case)] = record["peak_mib"] / 1024

    def stages(self, tasks: Iterable[Task]) -> dict[Task, int]:
        """The stage of each task, in the order in which they are measured."""
        wanted = [*tasks]
        places: dict[Place, int] = {}
        for task in wanted:
            run = self._runs.get(task)
            if task.part == "large" or (task.part == "compiled" and task.case.mode != "train"):
                stage = MISSING_LATER if run is None else KNOWN_LATER
            else:
                stage = MISSING if run is None else EARLIER if run > 0 else LAST
            places[_place(task)] = min(stage, places.get(_place(task), KNOWN_LATER))
        return {task: places[_place(task)] for task in sorted(wanted, key=lambda task: places[_place(task)])}

    def gib(self, tasks: Iterable[Task]) -> float:
        """Of the card's memory, what a process is counted with that measures these tasks one after the other."""
        return GIB_OF_A_PROCESS + max(self._gib(task) for task in tasks)

    def _gib(self, task: Task) -> float:
        is_compiled = task.part == "compiled"
        part = task.case.mode if is_compiled else task.part
        peak = self._peaks.get((task.network, task.contender, part, task.case), GIB_OF_A_TRAINING)
        return peak * SHARE_OF_COMPILING if is_compiled else peak


def _place(task: Task) -> Place:
    return task.network, task.part, task.case
