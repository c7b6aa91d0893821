"""Export every family in every way, run the files, and write what came out to docs/export.json and docs/export.md.

    python tools/make_export_table.py [FAMILY...] [--of first|largest] [--way WAY] [--again] [--timeout SECONDS]

What docs/export.json has already is not measured again, except with --again. Each export has a process of its own, one
thread, and random weights. A new family is found by its registration. Its first arch is taken, and then its largest one
that has room in this machine: that one is run at few and small images, because a run takes longer than an export.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from mm_vitbackbones.build import backbone_names as known
from mm_vitbackbones.build import build_backbone, families
from mm_vitbackbones.errors import did_you_mean
from mm_vitbackbones.exporting import ExportMismatch, checking, export
from mm_vitbackbones.files import write_whole

ROOT = Path(__file__).parents[1]
RECORD, PAGE = ROOT / "docs" / "export.json", ROOT / "docs" / "export.md"
WAYS: Mapping[str, dict[str, Any]] = {
    "torch.export": dict(to="torch-export"),
    "ONNX, fixed size": dict(fixed=True, size=(512, 512)),
    "ONNX, free sizes": dict(),
}
"""The ways of an export, and the arguments of each."""

SIDE = 224
"""Pixels of the image of a fixed size, for the largest networks."""

UNSEEN = ((1, 32, 32), (3, 65, 97))
"""Batch, height and width that the files of the largest networks are checked at, besides the traced size."""

ROOM = 5 * 2**30
"""Bytes of the weights of a network that is exported here: there are up to four copies of them in memory, and on disk
one or two."""

BEGIN, END = "<!-- table: tools/make_export_table.py -->", "<!-- end of table -->"
TURNS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="such as Swin (all)")
    parser.add_argument("--of", choices=("first", "largest"), help="these of each family alone")
    parser.add_argument("--way", action="append", choices=WAYS, help="this way alone; can be given again")
    parser.add_argument("--again", action="store_true", help="measure what is there already, too")
    parser.add_argument("--timeout", type=float, default=300, metavar="SECONDS", help="of one export (300)")
    parser.add_argument("--one", nargs=2, metavar=("BACKBONE", "WAY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one)))
        return
    for name in args.families:
        if name not in families():
            sys.exit(f"error: there is no family {name!r}{did_you_mean(name, families())}")
    names = [] if args.of == "largest" else networks(args.families)
    names += [] if args.of == "first" else largest(args.families)
    for name in names:
        for way in args.way or WAYS:
            found = json.loads(RECORD.read_text("utf-8")) if RECORD.exists() else {}
            if way in found.get(name, {}) and not args.again:
                continue
            found.setdefault(name, {})[way] = row = apart(name, way, args.timeout)
            write_whole(RECORD, (json.dumps(found, indent=1) + "\n").encode())
            write_whole(PAGE, with_table(PAGE.read_text("utf-8"), found).encode())
            print(name, way, row, flush=True)


def networks(chosen: list[str]) -> list[str]:
    """The name of the first arch of each family, in the order that was asked for."""
    first: dict[str, str] = {}
    for name, (family, _) in known().items():
        first.setdefault(family.__name__, name)
    return [first[family] for family in chosen or first]


def largest(chosen: list[str]) -> list[str]:
    """The name of the arch of each family with the most weights that there is room for, where it is not the first."""
    found: dict[str, tuple[int, str]] = {}
    for name, (family, _) in known().items():
        if chosen and family.__name__ not in chosen:
            continue
        with torch.device("meta"):
            size = sum(parameter.nbytes for parameter in build_backbone(name).parameters())
        if size <= ROOM and size > found.get(family.__name__, (0, ""))[0]:
            found[family.__name__] = size, name
    first = networks([])
    return [found[family][1] for family in chosen or found if found[family][1] not in first]


def apart(name: str, way: str, timeout: float) -> dict[str, Any]:
    """``measure`` in a process of its own."""
    command = [sys.executable, __file__, "--one", name, way]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"failure": f"more than {timeout:.0f} s"}
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return {"failure": " ".join((done.stderr.splitlines() or ["it was killed"])[-1].split())[:120]}
    row: dict[str, Any] = json.loads(lines[-1])
    return row


def measure(name: str, way: str) -> dict[str, Any]:
    """What one export gives, as plain data; how long a run takes, for a fixed size."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    backbone = build_backbone(name).eval().requires_grad_(False)
    options, small = dict(WAYS[way]), name in networks([])
    if not small:
        checking.UNSEEN = UNSEEN
        if options.get("fixed"):
            options["size"] = (SIDE, SIDE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        try:
            done = export(backbone, path, tolerance=float("inf"), **options)
        except ExportMismatch as error:
            done = error.done
        row: dict[str, Any] = {
            "seconds": round(done.seconds, 1),
            "core_seconds": round(done.cpu_seconds, 1),
            "nodes": done.nodes,
            "bytes": done.bytes,
            "weights": done.weights,
            "error": done.error if done.error < float("inf") else None,
            "failures": [str(each) for each in done.checked if not each.error <= 1e-4],
            "torch": torch.__version__,
        }
        if small and options.get("fixed"):
            row |= times(backbone, path, options["size"])
    return row


def times(backbone: torch.nn.Module, path: Path, size: tuple[int, int]) -> dict[str, float]:
    """Milliseconds of the processor: of eager PyTorch and of onnxruntime, in turns, with one thread: the median."""
    from mm_vitbackbones.exporting.onnx_files import Session

    image, session = torch.randn(1, 3, *size), Session(path)
    runs: dict[str, Callable[[], Any]] = {"eager_ms": lambda: backbone(image), "onnxruntime_ms": lambda: session(image)}
    taken: dict[str, list[float]] = {key: [] for key in runs}
    with torch.no_grad():
        for _ in range(TURNS + 1):
            for key, run in runs.items():
                start = time.process_time()
                run()
                taken[key].append((time.process_time() - start) * 1e3)
    return {key: round(statistics.median(each[1:]), 1) for key, each in taken.items()}


def with_table(page: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """A page with the tables of what was found between its marks."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table(found)}\n\n{time_table(found)}\n\n{END}{rest.split(END)[1]}"


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [f"| backbone | {' | '.join(WAYS)} |", f"| --- |{' --- |' * len(WAYS)}"]
    for name in sorted({*found, *networks([])}):
        lines.append(f"| `{name}` | {' | '.join(cell(found.get(name, {}).get(way)) for way in WAYS)} |")
    return "\n".join(lines)


def cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "not run"
    if "failure" in row:
        return f"fails: {row['failure']}".replace("|", "/").replace("`", "'")
    error = "wrong: " + row["failures"][0][:90] if row["failures"] else f"{row['error']:.0e}"
    size = f"{row['bytes'] / 2**20:.1f} MiB ({row['bytes'] / row['weights'] - 1:+.1%})"
    return f"{row['core_seconds']:.0f} s, {row['nodes']} nodes, {size}, {error}".replace("|", "/")


def time_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["| backbone, 512x512 | eager PyTorch, ms | onnxruntime, ms |", "| --- | ---: | ---: |"]
    for name in sorted(found):
        row = found[name].get("ONNX, fixed size") or {}
        if "eager_ms" in row:
            lines.append(f"| `{name}` | {row['eager_ms']:.0f} | {row['onnxruntime_ms']:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
