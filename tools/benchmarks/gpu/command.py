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

from .cases import PARTS, Task, tasks
from .contenders import CONTENDERS
from .page import page
from .running import Plan, Runner, jobs, limits

NAME = "benchmarks_gpu"
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
) -> None:
    """Measures what ``benchmarks_gpu.jsonl`` in a folder does not hold yet, and writes ``benchmarks_gpu.json`` and the
    page next to it.

    Each record is appended as soon as it is there, so that a run which was stopped goes on where it was. What
    ``benchmarks_gpu.json`` has no figure of yet comes first.

    Args:
        networks: out of CONTENDERS; all of them if None.
        parts: out of PARTS; all of them if None.
        seconds: stops before so many seconds have passed; the page then holds what there is.
        baseline: another checkout of this package, which is measured as well.
        smoke: tiny images and a trial compiler, on any device: whether everything runs.

    Raises:
        UserError: for records of another machine, or a baseline that is no checkout of this package.
    """
    started = time.monotonic()
    if baseline is not None and not (baseline / "mm_vitbackbones" / "__init__.py").is_file():
        raise UserError(f"--baseline {baseline}: there is no mm_vitbackbones/ in this folder")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{NAME}.jsonl"
    here = machine(device)
    records = read(path, here)
    print(f"{here['card']}, driver {here['driver']}, torch {here['torch']}, peers: {here['peers']}", flush=True)
    done = {Task.from_json(record) for record in records}
    wanted = tasks(networks or CONTENDERS, parts or PARTS, baseline is not None)
    left = sorted((task for task in wanted if task not in done), key=shown(folder / f"{NAME}.json").__contains__)

    def keep(record: dict[str, Any]) -> None:
        records.append(record)
        append(path, record)
        print(f"[{time.monotonic() - started:4.0f} s] {line(record)}", flush=True)

    memory = torch.cuda.get_device_properties(device).total_memory / 2**30 if device != "cpu" else 0
    deadline = started + (seconds - MARGIN if seconds is not None else float("inf"))
    resolved = None if baseline is None else baseline.resolve()
    compiles = any(task.part == "compiled" for task in left)
    plan = Plan(device, smoke, resolved, deadline, limits(os.cpu_count() or 1, memory, compiles))
    finished = Runner(plan, keep, folder / f"{NAME}.log").run(jobs(left))
    write_pages(folder, {"machine": here, "records": records})
    if not finished:
        missing = len(wanted) - len({Task.from_json(record) for record in records} & set(wanted))
        print(f"stopped before {seconds:.0f} s: {missing} of {len(wanted)} measurements are missing", flush=True)


def shown(path: Path) -> set[Task]:
    """What a file of figures, of any machine, has a figure of, or why there is none."""
    if not path.is_file():
        return set()
    return {Task.from_json(record) for record in json.loads(path.read_text("utf-8"))["records"]}


def write_pages(folder: Path, data: Mapping[str, Any]) -> None:
    write_whole(folder / f"{NAME}.json", (json.dumps(data, indent=1) + "\n").encode())
    write_whole(folder / f"{NAME}.md", page(data).encode())


def read(path: Path, here: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records of an unfinished run on this machine; starts the file if there is none."""
    if not path.is_file():
        append(path, {"machine": here})
        return []
    first, *records = [json.loads(each) for each in path.read_text("utf-8").splitlines() if each.strip()]
    if first != {"machine": here}:
        raise UserError(f"{path} is of another machine or other versions: remove the file to start again")
    return records


def append(path: Path, record: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def line(record: Mapping[str, Any]) -> str:
    """A record for the console."""
    fields = set(Task.__dataclass_fields__)
    values = [f"{name} {_shown(value)}" for name, value in record.items() if name not in fields]
    return f"{Task.from_json(record)}: {', '.join(values)}"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}" if value >= 0.01 else f"{value:.1e}"
    return str(value)
