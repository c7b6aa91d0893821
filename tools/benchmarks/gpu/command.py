"""``tools/benchmark.py --device cuda --report``: measures what is missing and makes the page."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from mm_vitbackbones.errors import UserError
from mm_vitbackbones.files import write_whole

from . import figures, measuring
from .cases import PARTS, Task, tasks
from .contenders import CONTENDERS
from .figures import NAME
from .page import page
from .planning import Known, is_settled
from .running import COMPILE_SECONDS, Plan, Runner, jobs, room

PEERS = ("timm", "transformers", "mmcv", "mmcv-lite", "mmdet", "mmsegmentation")
MARGIN = 5.0
"""Seconds before the limit at which measuring stops, to write the page."""


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on."""
    card = torch.cuda.get_device_name(device) if device != "cpu" else "no GPU"
    return {"card": card, "driver": _driver(), "torch": torch.__version__, "peers": dict(_versions())}


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found[0] if found else "unknown"


def _versions() -> Iterator[tuple[str, str]]:
    for name in PEERS:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


def report(
    folder: Path,
    networks: list[str] | None = None,
    parts: list[str] | None = None,
    seconds: float | None = None,
    baseline: Path | None = None,
    device: str = "cuda",
    smoke: bool = False,
    known: Path | None = None,
    compile_seconds: float = COMPILE_SECONDS,
) -> None:
    """Measures what ``benchmarks_gpu.jsonl`` in a folder does not hold yet, and adds it to ``benchmarks_gpu.json`` and
    the page next to it.

    Each record is appended as soon as it is there, so that a run which was stopped goes on where it was. What it had
    to leave out is tried again.

    Args:
        networks: out of CONTENDERS; all of them if None.
        parts: out of PARTS; all of them if None.
        seconds: stops before so many seconds have passed; the page then holds what there is.
        baseline: another checkout of this package, which is measured as well.
        smoke: tiny images and a trial compiler, on any device: whether everything runs.
        known: a folder with the figures there are: what they lack comes first, then what they have of an earlier run.
        compile_seconds: of the processor: what takes more to compile is left out.

    Raises:
        UserError: for records of another machine, or a baseline that is no checkout of this package.
    """
    started = time.monotonic()
    if baseline is not None and not (baseline / "mm_vitbackbones" / "__init__.py").is_file():
        raise UserError(f"--baseline {baseline}: there is no mm_vitbackbones/ in this folder")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{NAME}.jsonl"
    here = machine(device)
    records = resume(path, here, smoke)
    print(f"{here['card']}, driver {here['driver']}, torch {here['torch']}, peers: {here['peers']}", flush=True)
    done = {Task.from_json(record) for record in records if is_settled(record)}
    wanted = tasks(networks or CONTENDERS, parts or PARTS, baseline is not None)
    there = Known(figures.read(known or folder)["records"])
    stages = {task: stage for task, stage in there.stages(wanted).items() if task not in done}

    def keep(record: dict[str, Any]) -> None:
        if is_settled(record):
            done.add(Task.from_json(record))
        figures.append(path, record)
        print(f"[{time.monotonic() - started:4.0f} s] {line(record)}", flush=True)

    memory = torch.cuda.get_device_properties(device).total_memory / 2**30 if device != "cpu" else float("inf")
    deadline = started + (seconds - MARGIN if seconds is not None else float("inf"))
    compiles = any(task.part == "compiled" for task in stages)
    plan = Plan(
        device,
        smoke,
        None if baseline is None else baseline.resolve(),
        deadline,
        room(os.cpu_count() or 1, memory, compiles),
        compile_seconds,
    )
    finished = Runner(plan, keep, folder / f"{NAME}.log").run(jobs(stages, there, together=smoke))
    merge(folder, folder)
    if not finished:
        missing = len({*wanted} - done)
        print(f"stopped before {seconds:.0f} s: {missing} of {len(wanted)} measurements are missing", flush=True)


def merge(run: Path, folder: Path) -> None:
    """Adds the run in a folder to the figures in another, or the same, and makes their page.

    Raises:
        UserError: if there is no run, or it is a trial.
    """
    found = figures.read_run(run)
    if found is None:
        raise UserError(f"there is no {NAME}.jsonl in {run}: name the --out of a report on a GPU")
    if found["trial"] and run != folder:
        raise UserError(f"{run} holds a trial (--smoke), whose figures are of toy images")
    write_pages(folder, figures.merged(found, figures.read(folder)))


def write_pages(folder: Path, data: Mapping[str, Any]) -> None:
    write_whole(folder / f"{NAME}.json", (json.dumps(data, indent=1) + "\n").encode())
    write_whole(folder / f"{NAME}.md", page(data).encode())


def resume(path: Path, here: Mapping[str, Any], trial: bool) -> list[dict[str, Any]]:
    """The records of an unfinished run on this machine; starts the file if there is none."""
    found = figures.read_run(path.parent)
    if found is None:
        date = time.strftime("%Y-%m-%d", time.gmtime())
        figures.append(path, {"machine": here, "date": date, "turns": measuring.TURNS, "trial": trial})
        return []
    if (found["machine"], found["trial"]) != (here, trial):
        raise UserError(f"{path} is of another machine or other versions: remove the file to start again")
    records: list[dict[str, Any]] = found["records"]
    return records


def line(record: Mapping[str, Any]) -> str:
    """A record for the console."""
    fields = set(Task.__dataclass_fields__)
    values = [f"{name} {_shown(value)}" for name, value in record.items() if name not in fields]
    return f"{Task.from_json(record)}: {', '.join(values)}"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}" if value >= 0.01 else f"{value:.1e}"
    return str(value)
