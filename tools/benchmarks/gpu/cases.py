"""What is measured of each contender on a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .contenders import BEFORE, BEST_COMPILED, CONTENDERS, OURS

PARTS = ("train", "inference", "compiled", "large")
SMOKE_SIZE = (64, 96)
"""The size and batch 1 that stand for all cases in a trial without a GPU."""


@dataclass(frozen=True)
class Case:
    """A mode (``train`` or ``inference``), a size of image (height, width) and a batch."""

    mode: str
    size: tuple[int, int]
    batch: int

    def __str__(self) -> str:
        return f"{self.mode} {self.size[0]}x{self.size[1]} b{self.batch}"


TRAIN_512, TRAIN_800 = Case("train", (512, 512), 16), Case("train", (800, 1344), 2)
INFER_800, INFER_512 = Case("inference", (800, 1344), 1), Case("inference", (512, 512), 16)
CASES: dict[str, tuple[Case, ...]] = {
    "train": (TRAIN_512, TRAIN_800),
    "inference": (INFER_800, INFER_512),
    "compiled": (TRAIN_512, INFER_800),
    "large": (Case("inference", (2048, 2048), 1), Case("inference", (4096, 4096), 1)),
}


@dataclass(frozen=True)
class Task:
    """One measurement, which gives one record: its times and its memory, or its kernels."""

    network: str
    contender: str
    part: str
    case: Case
    what: str
    """``time`` (wall clock, CUDA graph, peak of memory) or ``kernels`` (CUDA time, number of kernels). ``time`` of what
    is compiled is both."""

    def __str__(self) -> str:
        how = "compiled " if self.part == "compiled" else ""
        return f"{self.network} {self.contender}: {how}{self.case}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Task:
        case = data["case"]
        place = Case(case["mode"], (case["size"][0], case["size"][1]), case["batch"])
        return cls(data["network"], data["contender"], data["part"], place, data["what"])


def tasks(networks: Iterable[str], parts: Iterable[str], before: bool) -> list[Task]:
    """All that is measured of these networks; ``before``: of an older version of ours, too."""
    found = []
    for network in networks:
        for part in parts:
            if part == "compiled":
                pair = (OURS, BEST_COMPILED[network])
                found += [Task(network, name, part, case, "time") for case in CASES[part] for name in pair]
                continue
            for contender in CONTENDERS[network]:
                if part in contender.parts and (before or contender.name != BEFORE):
                    kinds = ("time",) if part == "large" else ("time", "kernels")
                    found += [Task(network, contender.name, part, case, what) for case in CASES[part] for what in kinds]
    return found
