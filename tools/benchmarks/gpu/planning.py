"""What is measured first: what the page lacks, then what it has of an earlier run.

The times of one table are compared with each other. So all contenders of a table are measured in one run: if one of
them is missing, all are measured again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .cases import TRAIN_512, Case, Task

MISSING, EARLIER, MISSING_LATER, SHOWN = range(4)
"""Stages of a run. MISSING_LATER are large images and compiled inference, which no aim needs, or none alone: they take
the time of what is compiled for training."""

GIB_OF_A_PROCESS = 2.0
"""Of the card: what a process takes besides its tensors."""
GIB_OF_A_TRAINING = 12.0
"""What a process takes that compiles training of which no figure is known."""
GIB_OF_AN_EAGER_PROCESS = 20.0
"""The same of one that compiles nothing: its caches hold what the contender before it took."""
CACHED = 1.25
"""What a process takes over the peak of its tensors."""

Place = tuple[str, str, Case]


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
            self._runs[task] = record.get("run", 0)
            if "peak_mib" in record:
                self._peaks[(task.network, task.contender, task.part, task.case)] = record["peak_mib"] / 1024

    def stages(self, tasks: Iterable[Task]) -> dict[Task, int]:
        """The stage of each task, in the order in which they are measured."""
        wanted = [*tasks]
        places: dict[Place, int] = {}
        for task in wanted:
            run = self._runs.get(task)
            stage = MISSING if run is None else EARLIER if run > 0 else SHOWN
            if stage != SHOWN and (task.part == "large" or (task.part == "compiled" and task.case.mode != "train")):
                stage = MISSING_LATER
            places[_place(task)] = min(stage, places.get(_place(task), SHOWN))
        return {task: places[_place(task)] for task in sorted(wanted, key=lambda task: places[_place(task)])}

    def gib(self, tasks: Iterable[Task]) -> float:
        """Of the card's memory, what a process takes at most that measures these tasks one after the other."""
        return max(self._gib(task) for task in tasks)

    def _gib(self, task: Task) -> float:
        part, case = ("train", TRAIN_512) if task.part == "compiled" else (task.part, task.case)
        if task.part == "compiled" and task.case.mode != "train":
            return GIB_OF_A_PROCESS
        peak = self._peaks.get((task.network, task.contender, part, case))
        if peak is None:
            return GIB_OF_A_TRAINING if task.part == "compiled" else GIB_OF_AN_EAGER_PROCESS
        return peak * CACHED + GIB_OF_A_PROCESS


def _place(task: Task) -> Place:
    return task.network, task.part, task.case
