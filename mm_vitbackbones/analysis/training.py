"""What the log files of trainings say: losses, metrics, learning rate, time and memory, by iteration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mm_vitbackbones.errors import UserError

Points = list[tuple[float, float]]

OF_TRAINING = ("loss", "lr", "time", "memory")
"""What is drawn of the lines of a training."""


@dataclass
class Training:
    """A run, by the names of what it logged.

    Attributes:
        curves: (iteration, value) of ``loss``, ``lr``, ``time`` (seconds of an iteration), ``memory`` (MiB on a GPU).
        metrics: (iteration, value) of what was evaluated.
    """

    name: str
    curves: dict[str, Points] = field(default_factory=dict)
    metrics: dict[str, Points] = field(default_factory=dict)


def read_training(folder: Path) -> Training:
    """The log of a run: MMEngine's ``vis_data/scalars.json`` in its work dir, of all parts of a run that was resumed.

    Where two parts have a value for the same iteration, that of the later one counts. A line that is cut, as at the end
    of a run that was killed, is left out.

    Raises:
        UserError: there is no such file, or no number in it.
    """
    files = sorted([*folder.glob("*/vis_data/scalars.json"), *folder.glob("vis_data/scalars.json")])
    if not files:
        raise UserError(f"there is no log of a training in {folder}: */vis_data/scalars.json is looked for")
    run = Training(folder.resolve().name)
    of_training: dict[str, dict[int, float]] = {}
    of_metrics: dict[str, dict[int, float]] = {}
    for file in files:
        length = 0  # iterations so far: an evaluation at the end of an epoch is logged with the epoch's number
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if not isinstance(entry, dict):
                continue
            numbers = {key: float(value) for key, value in entry.items() if isinstance(value, (int, float))}
            if "loss" in numbers:
                length = int(numbers.get("step", numbers.get("iter", length)))
                for key in OF_TRAINING:
                    if key in numbers:
                        of_training.setdefault(key, {})[length] = numbers[key]
            elif "step" in numbers:
                for key, value in numbers.items():
                    if key not in ("step", "iter", "epoch", "time", "data_time"):
                        of_metrics.setdefault(key, {})[max(length, int(numbers["step"]))] = value
    run.curves = {key: sorted(points.items()) for key, points in of_training.items()}
    run.metrics = {key: sorted(points.items()) for key, points in of_metrics.items()}
    if not run.curves and not run.metrics:
        raise UserError(f"{files[-1]} has no numbers of a training or an evaluation")
    return run


def once(names: Sequence[str]) -> list[str]:
    """Names of runs, with a number after those that another one has."""
    return [
        name if names.index(name) == place else f"{name} ({names[: place + 1].count(name)})"
        for place, name in enumerate(names)
    ]
