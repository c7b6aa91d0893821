"""``tools/benchmark.py``: measure now, or fill docs/benchmarks.json and make docs/benchmarks.md of it."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from mm_vitbackbones.cli.arguments import Parser
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.files import write_whole

from .contenders import CONTENDERS
from .gpu import command
from .gpu import contenders as gpu_contenders
from .gpu.cases import PARTS
from .running import DTYPES, MODES, Case, Setup, cases, gpu_cases, machine, measure_apart

SETTINGS: dict[str, dict[str, str]] = {"stock": {}, "huge pages": {"THP_MEM_ALLOC_ENABLE": "1"}}
"""Environment variables of the memory allocator, by the name of the setting."""

DOCS = Path(__file__).parents[2] / "docs"

SIDES = (256, 512, 1024, 1536, 2048)
"""Of the square images of the plots."""

TITLES = {
    "pvt_s": "PVT-Small",
    "pvt_v2_b2": "PVTv2-B2",
    "mit_b2": "MiT-B2",
    "swin_t": "Swin-T",
    "coat_lite_s": "CoaT-Lite-Small",
    "coat_mini": "CoaT-Mini",
    "pit_s": "PiT-S, published geometry",
    "segformer_b0": "SegFormer-B0, E = 256",
    "segformer_b0_wide": "SegFormer-B0, E = 768",
    "segformer_b2": "SegFormer-B2, E = 768",
    "deit_s": "ViT-S (DeiT), the last block",
    "dinov2_s": "DINOv2-S, the last block",
    "dinov3_s": "DINOv3-S, the last block",
    "cait_xxs24": "CaiT-XXS24, four taps",
    "cait_s24": "CaiT-S24, four taps",
    "xcit_s12_p16": "XCiT-S12/16, four taps",
    "xcit_s12_p8": "XCiT-S12/8, four taps",
    "mvit_v2_t": "MViTv2-T, in timm's form and in windows",
    "segformer_head": "SegFormer's head alone, E = 768, on MiT-B2's maps",
}

TARGETS: dict[tuple[str, tuple[int, int]], dict[str, float]] = {
    ("pvt_s", (512, 512)): {"mmdet": 1.7},
    ("pvt_s", (800, 1344)): {"mmdet": 2.2},
    ("pvt_v2_b2", (512, 512)): {"mmdet": 1.7, "timm": 1.6},
    ("pvt_v2_b2", (800, 1344)): {"mmdet": 2.2, "timm": 1.6},
    ("mit_b2", (512, 512)): {"mmseg": 1.5, "transformers": 1.4},
    ("mit_b2", (800, 1344)): {"mmseg": 2.0, "transformers": 1.4},
    ("swin_t", (512, 512)): {"mmdet": 1.3, "timm": 1.15},
    ("swin_t", (800, 1344)): {"mmdet": 1.5, "timm": 1.15},
    ("coat_lite_s", (512, 512)): {"timm": 1.4},
    ("coat_lite_s", (800, 1344)): {"timm": 1.5},
    ("coat_mini", (512, 512)): {"timm": 1.4},
    ("coat_mini", (800, 1344)): {"timm": 1.5},
    ("pit_s", (224, 224)): {"timm": 1.0},
    ("segformer_b0", (512, 512)): {"mmseg": 2.5, "transformers": 2.5},
    ("segformer_b0_wide", (512, 512)): {"mmseg": 2.5, "transformers": 2.5},
    ("segformer_b2", (512, 512)): {"mmseg": 2.5, "transformers": 2.5},
}
"""How much faster than another implementation the forward pass is meant to be: network and size, name, ratio."""

IN_NOTES = (
    "deit_s",
    "dinov2_s",
    "dinov3_s",
    "cait_xxs24",
    "cait_s24",
    "xcit_s12_p16",
    "xcit_s12_p8",
    "mvit_v2_t",
)
"""Networks whose figures are in docs/benchmarks_notes.md: measured on another machine, or by the clock of the CPU."""

PLOTTED = ("pvt_s", "pvt_v2_b2", "mit_b2", "swin_t", "coat_lite_s", "coat_mini", "pit_s")

Rows = Mapping[str, list[dict[str, Any]]]
"""The measured rows of each case and setting, by ``key``."""


def key(case: Case, setting: str) -> str:
    return f"{case}, {setting}"


def main(argv: list[str]) -> None:
    """The command line of tools/benchmark.py.

    Raises:
        UserError: for a report that would continue another machine's.
    """
    parser = Parser(prog="benchmark.py", description="Time and memory, ours and other implementations, in turns, fp32.")
    known = [*dict.fromkeys((*CONTENDERS, *gpu_contenders.CONTENDERS))]
    parser.add_argument("--networks", nargs="+", choices=known, help="all that there are, if none is named")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=[*MODES])
    parser.add_argument("--turns", type=int, default=Setup.turns, help=f"of each contender ({Setup.turns})")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: of one thread (--threads 1)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ...; each has sizes of its own")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--compiled", action="store_true", help="measure networks compiled by torch.compile")
    parser.add_argument(
        "--report",
        action="store_true",
        help="measure what docs/benchmarks.json does not have yet, with each setting of the allocator, and make "
        "docs/benchmarks.md (on the CPU, eager, fp32)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=(*PARTS, "page"),
        metavar="PART",
        help=f"report on a GPU: {', '.join(PARTS)}; or page: measure nothing, make the pages of the figures there are",
    )
    parser.add_argument("--seconds", type=float, help="report on a GPU: stop before so many, with what there is then")
    parser.add_argument(
        "--baseline",
        type=Path,
        metavar="DIR",
        help="report on a GPU: another checkout of this package, to compare with",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", default=DOCS, help="report on a GPU: where it goes (docs/)")
    parser.add_argument(
        "--merge",
        type=Path,
        metavar="DIR",
        help="report on a GPU: measure nothing, add the run in the --out of another report to the figures there are",
    )
    parser.add_argument(
        "--compile-seconds",
        type=float,
        default=command.COMPILE_SECONDS,
        help="report on a GPU: leave out what takes more seconds of the processor to compile "
        f"({command.COMPILE_SECONDS:.0f})",
    )
    parser.add_argument("--smoke", action="store_true", help=argparse.SUPPRESS)  # the report on a GPU, without one
    args = parser.parse_args(argv)
    options = {name: getattr(args, name) for name in ("turns", "threads", "clock", "device", "dtype", "compiled")}
    try:
        setup = Setup(**options)
    except ValueError as error:
        raise UserError(str(error)) from None
    if args.report and args.only == ["page"]:
        remake(args.out)
        return
    if args.report and args.merge is not None:
        command.merge(args.merge, args.out)
        remake(args.out)
        return
    if args.report and (args.device != "cpu" or args.smoke):
        _report_on_gpu(args)
        return
    if args.only or args.seconds is not None or args.baseline is not None or args.merge is not None:
        raise UserError("--only, --seconds, --baseline and --merge are of the report on a GPU: --device cuda --report")
    if others := [network for network in args.networks or () if network not in CONTENDERS]:
        raise UserError(f"--networks {others[0]}: only the report on a GPU has it: --device cuda --report")
    if args.report:
        if setup != Setup(setup.turns, setup.threads):
            raise UserError("--report goes without --clock, --device, --dtype and --compiled: its page is of one setup")
        write_report(DOCS, cases(args.networks or CONTENDERS, args.modes), setup)
        return
    if args.device != "cpu" and not torch.cuda.is_available():
        raise UserError(f"--device {args.device}: there is no GPU that torch can use")
    print(machine(setup), flush=True)
    _print_rows((cases if setup.device == "cpu" else gpu_cases)(args.networks or CONTENDERS, args.modes), setup)


def _print_rows(wanted: list[Case], setup: Setup) -> None:
    """Each case as it is measured. One in which ours fails, or whose process the system ends, is a line, no end."""
    failed = []
    for case in wanted:
        try:
            rows: list[Any] = measure_apart(case, setup)
        except (RuntimeError, AssertionError, MemoryError) as error:  # a broken pool of processes is a RuntimeError
            rows = [f"fails: {[*str(error).strip().splitlines(), type(error).__name__][0]}"]
            failed.append(str(case))
        for row in rows:
            print(f"{case!s:<44} {row}", flush=True)
    if failed:
        raise UserError(f"{len(failed)} of {len(wanted)} cases failed: {', '.join(failed)}")


def _report_on_gpu(args: argparse.Namespace) -> None:
    if args.compiled or args.dtype != Setup.dtype or args.modes != [*MODES]:
        raise UserError("--device cuda --report goes without --compiled, --dtype and --modes: it measures all of them")
    if args.only and "page" in args.only:
        raise UserError("--only page goes alone: it measures nothing")
    if args.device != "cpu" and not torch.cuda.is_available():
        raise UserError(f"--device {args.device}: there is no GPU that torch can use")
    if args.smoke and args.out == DOCS:
        raise UserError("--smoke measures nothing that docs/ should show: give --out")
    asked = args.networks or gpu_contenders.CONTENDERS
    networks = [network for network in asked if network in gpu_contenders.CONTENDERS]
    if not networks:
        raise UserError(f"--networks: the report on a GPU has {', '.join(gpu_contenders.CONTENDERS)}")
    command.report(
        args.out,
        networks,
        args.only,
        args.seconds,
        args.baseline,
        args.device,
        args.smoke,
        known=DOCS,
        compile_seconds=args.compile_seconds,
    )


def write_report(docs: Path, wanted: list[Case], setup: Setup) -> None:
    """Measure what is missing, and make the page and its plots of all that there is."""
    data = fill(docs / "benchmarks.json", wanted, setup)
    for network in PLOTTED:
        plot(data["rows"], network, docs / "benchmarks")
    _write_page(docs, data)


def _write_page(docs: Path, data: Mapping[str, Any]) -> None:
    notes = (docs / "benchmarks_notes.md").read_text("utf-8")
    has_gpu_page = (docs / f"{command.NAME}.json").is_file()
    write_whole(docs / "benchmarks.md", page(data, notes, has_gpu_page).encode())


def remake(docs: Path) -> None:
    """Both pages, of the figures that a folder has."""
    if (figures := docs / f"{command.NAME}.json").is_file():
        command.write_pages(docs, json.loads(figures.read_text("utf-8")))
    if (figures := docs / "benchmarks.json").is_file():
        _write_page(docs, json.loads(figures.read_text("utf-8")))


def fill(path: Path, wanted: list[Case], setup: Setup) -> dict[str, Any]:
    """What a file of measured rows holds, with the wanted cases that it lacked; it is saved after each of them.

    Raises:
        UserError: if the file is of another machine.
    """
    here = {"machine": machine(setup), "turns": setup.turns}
    data: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {**here, "rows": {}}
    for name, value in here.items():
        if data[name] != value:
            raise UserError(
                f"{path} has {name} {data[name]!r}, and here it is {value!r}: remove the file to start again"
            )
    for case, setting in jobs(wanted):
        if key(case, setting) not in data["rows"]:
            here_setup = setup if setting in SETTINGS else replace(setup, turns=1)
            rows = measure_apart(case, here_setup, SETTINGS.get(setting, {}))
            data["rows"][key(case, setting)] = [asdict(row) for row in rows]
            write_whole(path, json.dumps(data, indent=1).encode())
            print(key(case, setting), *rows, sep="\n  ", flush=True)
    return data


def jobs(wanted: list[Case]) -> Iterator[tuple[Case, str]]:
    """What to measure: the cases with each setting, and for the plots, once each, square images of many sides."""
    for setting in SETTINGS:
        for case in wanted:
            yield case, setting
    for network in dict.fromkeys(case.network for case in wanted):
        if network in PLOTTED:
            for side in SIDES:
                yield Case(network, "forward", (side, side)), "plot"


def page(data: Mapping[str, Any], notes: str, has_gpu_page: bool = False) -> str:
    """docs/benchmarks.md, with the hand-written ``notes`` after the measured tables.

    Args:
        has_gpu_page: whether docs/benchmarks_gpu.md exists, too.
    """
    rows: Rows = data["rows"]
    parts = [HEAD.format(**data, gpu=GPU_PAGE if has_gpu_page else NO_GPU_PAGE), _targets(rows)]
    for network, title in TITLES.items():
        if table := _table(rows, network):
            picture = f"\n![Time and memory against the side of the image](benchmarks/{network}.png)\n"
            parts.append(f"\n## {title}\n\n{table}{picture if network in PLOTTED else ''}")
    return "".join(parts) + "\n" + notes


HEAD = """# Benchmarks

Made by `tools/benchmark.py --report` from `docs/benchmarks.json` and `docs/benchmarks_notes.md`: do not edit.

Our networks and other implementations of the same ones, at random weights. The contenders of a case take turns in
one process, {turns} turns after one to warm up; each case has a process of its own. Times are medians; "x" is the
median over the turns of their time to ours, with its quartiles, and their peak of allocated memory to ours. Batch 1.
The parameters' gradients do not count in the peaks. The plots are of the forward pass, stock, one turn.

All figures of the tables were **measured here**: {machine}. {gpu}

"Huge pages" is `THP_MEM_ALLOC_ENABLE=1`, "stock" is without it. glibc hands large freed tensors back to the system and
takes their pages again, one by one, the next time. That is half of the time of those who make many large tensors, and
an eighth of ours, so every ratio is one of a setting of the allocator.
"""

GPU_PAGE = "What is measured on a GPU stands in [benchmarks_gpu.md](benchmarks_gpu.md)."
NO_GPU_PAGE = "On a GPU `tools/benchmark.py --device cuda --report` measures; its page is **not made yet**."

TABLE = """| image | what | implementation | stock: ms | x | huge pages: ms | x | peak: MiB | x |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def _targets(rows: Rows) -> str:
    lines = ["\n## What we aim at in the forward pass\n\n| network | image | against | aim | stock | huge pages |\n"]
    lines.append("| --- | --- | --- | --- | --- | --- |\n")
    for (network, size), aims in TARGETS.items():
        for name, aim in aims.items():
            cells = [_reached(rows, Case(network, "forward", size), setting, name, aim) for setting in SETTINGS]
            image = f"{size[0]}x{size[1]}"
            lines.append(f"| {TITLES[network]} | {image} | {name} | x{aim} | {cells[0]} | {cells[1]} |\n")
    return "".join(lines)


def _reached(rows: Rows, case: Case, setting: str, name: str, aim: float) -> str:
    found = {row["name"]: row for row in rows.get(key(case, setting), [])}.get(name)
    if found is None or found["failure"]:
        return "untested"
    ratio = round(found["ratio"][1], 2)  # as it is printed: turns differ by more
    return f"x{ratio:.2f}" if ratio >= aim else f"x{ratio:.2f}: not reached"


def _table(rows: Rows, network: str) -> str:
    lines = []
    for case in cases([network], MODES):
        stock, huge = ({row["name"]: row for row in rows.get(key(case, setting), [])} for setting in SETTINGS)
        for name, row in stock.items():
            image = f"{case.size[0]}x{case.size[1]}"
            if row["failure"]:
                lines.append(f"| {image} | {case.mode} | {name} | {row['failure']} | | | | | |\n")
                continue
            other = _time(huge[name]) if name in huge else "- | -"
            memory = f"{row['peak_mib']:.0f} | {'1' if name == 'ours' else format(row['peak_ratio'], '.2f')}"
            lines.append(f"| {image} | {case.mode} | {name} | {_time(row)} | {other} | {memory} |\n")
    return TABLE + "".join(lines) if lines else ""


def _time(row: Mapping[str, Any]) -> str:
    low, middle, high = row["ratio"]
    ratio = "1" if row["name"] == "ours" else f"{middle:.2f} ({low:.2f} to {high:.2f})"
    return f"{row['milliseconds']:.0f} | {ratio}"


def plot(rows: Rows, network: str, folder: Path) -> None:
    """Time and memory of the forward pass against the side of the image, as an image in a folder."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    points: dict[str, list[tuple[int, float, float]]] = {}
    for side in SIDES:
        for row in rows.get(key(Case(network, "forward", (side, side)), "plot"), []):
            if not row["failure"]:
                points.setdefault(row["name"], []).append((side, row["milliseconds"] / 1e3, row["peak_mib"] / 1024))
    for name, found in points.items():
        sides, seconds, memory = zip(*found, strict=True)
        for panel, values in zip(panels, (seconds, memory), strict=True):
            panel.plot(sides, values, marker="o", label=name, linewidth=2.5 if name == "ours" else 1.2)
    for panel, what in zip(panels, ("seconds", "peak memory, GiB"), strict=True):
        panel.set(xscale="log", yscale="log", xlabel="side of the image, pixels", ylabel=what)
        panel.set_xticks(SIDES, [str(side) for side in SIDES])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.suptitle(f"{TITLES[network]}: forward pass")
    folder.mkdir(exist_ok=True)
    figure.savefig(folder / f"{network}.png", dpi=110)
