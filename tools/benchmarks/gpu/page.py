"""docs/benchmarks_gpu.md: what we aim at and what was measured, from the records of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import columnar
from .cases import CASES, INFER_512, INFER_800, TRAIN_512, TRAIN_800, Case, Task
from .contenders import BEFORE, CONTENDERS, LIGHT, LIGHT_FORM, OURS

TITLES = {
    "pvt_s": "PVT-Small",
    "pvt_v2_b2": "PVTv2-B2",
    "mit_b2": "MiT-B2",
    "swin_t": "Swin-T",
    "coat_lite_s": "CoaT-Lite-Small",
    "coat_mini": "CoaT-Mini",
    "pit_s": "PiT-S, published geometry",
    "segformer_b0": "SegFormer-B0, E = 256",
    "segformer_b2": "SegFormer-B2, E = 768",
    **{name: network.title for name, network in columnar.NETWORKS.items()},
    "cait_s24": "CaiT-S24",
    "xcit_s12_p16": "XCiT-Small-12, patches of 16 pixels",
    "mvit_v2_t": "MViTv2-T without windows, as timm's",
}


@dataclass(frozen=True)
class Aims:
    """How many times as long as ours the best peer is meant to take, and the share of its memory that we take."""

    training: float
    memory: float
    inference: float
    fastest_inference: float
    """Of each the fastest form: compiled, captured as a CUDA graph, or both."""
    light_memory: float | None = None
    """With ``with_cp``, which may take LIGHT_TIME as long as without."""


COMPILED_TRAINING = 1.15
LIGHT_TIME = 1.15
WALL_OVER_CUDA = 1.15
"""At most, for a training step at 512x512, batch 16."""

_PVT = Aims(1.3, 0.8, 1.3, 2.0, 0.4)
_COLUMN = Aims(1.1, 0.8, 1.1, 1.1)
"""Of PiT, and of ViT and its successors, which take the same steps."""
_COAT = Aims(1.15, 0.8, 1.3, 1.2)
_SEGFORMER = Aims(1.4, 0.5, 1.5, 2.0)
AIMS = {
    "pvt_s": _PVT,
    "pvt_v2_b2": _PVT,
    "mit_b2": _PVT,
    "swin_t": Aims(1.15, 0.8, 1.3, 1.2, 0.4),
    "coat_lite_s": _COAT,
    "coat_mini": _COAT,
    "pit_s": _COLUMN,
    "segformer_b0": _SEGFORMER,
    "segformer_b2": _SEGFORMER,
    **dict.fromkeys((*columnar.NETWORKS, "cait_s24", "xcit_s12_p16", "mvit_v2_t"), _COLUMN),
}

Record = Mapping[str, Any]


class Figures:
    """The records, by what they are of. Only what one machine measured is compared.

    Each row has ``run``, the earliest of its figures, as its place in the list of runs, and ``machine``: alike where
    it is the same one.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        machines = [run["machine"] for run in data["runs"]]
        self._found: dict[tuple[str, str, str, Case], dict[str, Any]] = {}
        for record in data["records"]:
            task = Task.from_json(record)
            run = record.get("run", 0)
            place = self._found.setdefault((task.network, task.contender, task.part, task.case), {"run": run})
            place |= {"run": max(run, place["run"]), "machine": machines.index(machines[run])}
            skipped = {"network", "contender", "part", "case", "what", "run"}
            if task.what == "kernels" and "failure" in record:
                continue  # its time says why, or is all that there is
            place.update({name: value for name, value in record.items() if name not in skipped})

    def of(self, network: str, contender: str, part: str, case: Case) -> dict[str, Any] | None:
        """Everything measured in one place; None if nothing was."""
        return self._found.get((network, contender, part, case))

    def _machine(self, network: str, parts: Iterable[str], case: Case) -> int | None:
        """Whose figures are compared: those of the machine that measured ours last."""
        rows = [row for part in parts if (row := self.of(network, OURS, part, case)) is not None]
        return min((row["machine"] for row in rows), default=None)

    def value(
        self, network: str, contender: str, part: str, case: Case, name: str, parts: Iterable[str] = ()
    ) -> float | None:
        """A figure, to be compared with others of its place.

        Args:
            parts: those that are compared with each other, if they are several.
        """
        row = self.of(network, contender, part, case)
        if row is None or self._machine(network, parts or (part,), case) not in (None, row["machine"]):
            return None
        return None if name == "cuda_ms" and not _is_of_the_run(row) else row.get(name)

    def peers(self, network: str, part: str, case: Case, name: str) -> dict[str, float]:
        """The values of all peers that have one."""
        values = {c: self.value(network, c, part, case, name) for c in _peers(network)}
        return {c: value for c, value in values.items() if value is not None}

    def run(self, network: str, contenders: Iterable[str], parts: Iterable[str], case: Case) -> int:
        """The earliest run that measured one of these, as its place in the list of runs."""
        rows = [self.of(network, c, part, case) for c in contenders for part in parts]
        machine = self._machine(network, parts, case)
        return max((row["run"] for row in rows if row is not None and row["machine"] == machine), default=0)

    def fastest_inference(self, network: str, contenders: Iterable[str]) -> tuple[float, str, str] | None:
        """Milliseconds, who, and in which form, at 800x1344, batch 1."""
        forms = (
            ("inference", "graph_ms", "CUDA graph"),
            ("compiled", "ms", "compiled"),
            ("compiled", "graph_ms", "compiled, CUDA graph"),
        )
        times = [
            (value, contender, form)
            for contender in contenders
            for part, name, form in forms
            if (value := self.value(network, contender, part, INFER_800, name, FASTEST)) is not None
        ]
        return min(times, default=None)


def _is_of_the_run(row: Mapping[str, Any]) -> bool:
    """Whether the durations of kernels can be those of the run that was timed: they are not longer than it."""
    times = [row[name] for name in ("ms", "graph_ms") if row.get(name) is not None]
    return row.get("cuda_ms") is None or not times or row["cuda_ms"] <= MOST_OF_A_RUN * min(times)


MOST_OF_A_RUN = 1.1
"""Of its time, as kernels may take a little longer while they are watched. It starts them one after the other."""
FASTEST = ("inference", "compiled")
"""The parts whose inference is compared for the fastest form."""


def _peers(network: str) -> list[str]:
    return [c.name for c in CONTENDERS[network] if c.name not in (OURS, LIGHT, BEFORE)]


NOT_MEASURED = "not measured"
NOT_OF_THE_RUN = "†"


def page(data: Mapping[str, Any]) -> str:
    """The page of figures as ``figures`` describes them."""
    figures = Figures(data)
    parts = [_head(data["runs"][0]), _earlier(data["runs"]), _aims(figures), _python(figures)]
    for network, title in TITLES.items():
        if table := _tables(figures, network):
            parts.append(f"\n## {title}\n{table}")
    return "".join(parts)


def _described(machine: Mapping[str, Any]) -> str:
    peers = ", ".join(f"{name} {version}" for name, version in machine["peers"].items()) or "none"
    return f"{machine['card']}, driver {machine['driver']}, torch {machine['torch']}; peers: {peers}"


def _head(run: Mapping[str, Any]) -> str:
    light = f'`with_cp="{LIGHT_FORM}"`'
    return f"""# Benchmarks on a GPU

Made by `tools/benchmark.py --device cuda --report` from `docs/benchmarks_gpu.json`: do not edit. What is measured on a
CPU stands in [benchmarks.md](benchmarks.md).

**Measured here**, {run["date"]}: {_described(run["machine"])}.
{_since(run)}
Our networks and other implementations of the same ones, at random weights. A training step is forward and backward
under bf16 autocast, with fp32 weights, stochastic depth as by default of our network, and gradients that are set to
None before it. Inference has weights and image in bf16. Each figure was measured while no other process ran.

- *wall*: milliseconds of a run in a sequence that waits for nothing, {_groups(run)}; where it takes
  more than half a second, of one run. *CUDA*: the sum of the durations of all kernels; with {NOT_OF_THE_RUN} they take
  longer than the run itself, so there were others among them, and nothing is compared with them. *graph*: the same run
  captured as a CUDA graph and replayed.
- *peak*: memory beyond weights and image, in MiB; gradients of the parameters count.
- *x*: the time over ours: above 1 we are faster. "{OURS}" is the default, "{LIGHT}" has {light}.
- timm's fused attention is on by default except in Swin, which has a row of its own with it; transformers has
  `attn_implementation="sdpa"` where the network offers it.
- Compiled: `torch.compile(dynamic=False)` of the whole network. Seconds are those of one core.
"""


def _since(run: Mapping[str, Any]) -> str:
    """What was changed after a run, in words that somebody wrote into its ``since``."""
    return f"\n**Changed after these measurements**, and not measured: {run['since']}\n" if "since" in run else ""


def _groups(run: Mapping[str, Any]) -> str:
    """What the figure is of the groups of runs that were timed. Runs of earlier versions do not say it."""
    turns = run.get("turns")
    return (
        f"the least of {turns} groups of runs, in turns with the others where nothing is compiled"
        if turns
        else "the median of three groups of runs"
    )


def _earlier(runs: Sequence[Mapping[str, Any]]) -> str:
    """What the marks mean."""
    last = runs[0]["machine"]
    lines = []
    for index, run in enumerate(runs[1:], start=1):
        where = "on the same machine" if run["machine"] == last else f"on another machine: {_described(run['machine'])}"
        if run.get("turns") != runs[0].get("turns"):
            where += f". *wall*: {_groups(run)}"
        if "since" in run:
            where += f". Changed after it: {run['since'].rstrip('.')}"
        lines.append(f"- {_stars(index)}: from an earlier run, {run['date']}, of the version of then, {where}.\n")
    if any(run["machine"] != last for run in runs):
        lines.append("- Only figures of the same machine are compared with each other.\n")
    return "".join(lines)


def _stars(run: int) -> str:
    return "\\*" * run


def _mark(run: int) -> str:
    return f" {_stars(run)}" if run else ""


def _aims(figures: Figures) -> str:
    lines = [
        "\n## What we aim at\n\n"
        "Times are those of the best peer over ours, memory is ours over that of the leanest peer. *now* is by the\n"
        "wall clock, as the aim is. It counts what the processor does for each kernel: where that takes longer than\n"
        "the kernels, it is what is measured, and it depends on the machine and on the hour. *by CUDA time* is the\n"
        "same of the kernels' durations, which differ by 1 % between runs: what a faster processor comes near to.\n\n"
        "| network | what | aim | before | now | by CUDA time | the best peer |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
    ]
    for network, aims in AIMS.items():
        rows: list[Row] = []
        for case in (TRAIN_512, TRAIN_800):
            rows.append(_ratio(figures, network, f"training, {_image(case)}", "train", case, aims.training))
        for case in (TRAIN_512, TRAIN_800):
            rows.append(_memory(figures, network, OURS, f"memory of training, {_image(case)}", case, aims.memory))
            if aims.light_memory is not None:
                what = f"memory with `with_cp`, {_image(case)}"
                rows.append(_memory(figures, network, LIGHT, what, case, aims.light_memory))
                rows.append(_light_time(figures, network, case))
        for case in (INFER_512, INFER_800):
            rows.append(_ratio(figures, network, f"inference, {_image(case)}", "inference", case, aims.inference))
        rows.append(_fastest(figures, network, aims.fastest_inference))
        what = f"compiled training, {_image(TRAIN_512)}"
        rows.append(_ratio(figures, network, what, "compiled", TRAIN_512, COMPILED_TRAINING))
        lines += [f"| {TITLES[network]}{_mark(run)} | {' | '.join(cells)} |\n" for cells, run in rows]
    return "".join(lines)


Row = tuple[tuple[str, str, str, str, str, str], int]
"""What is meant, the aim, before, now, by CUDA time, and the best peer; and the earliest run that measured one of ours
and the peers."""


def _image(case: Case) -> str:
    return f"{case.size[0]}x{case.size[1]} batch {case.batch}"


def _at_least(value: float | None, aim: float) -> str:
    if value is None:
        return NOT_MEASURED
    shown = round(value, 2)  # as it is printed
    return f"x{shown:.2f}" if shown >= aim else f"x{shown:.2f}: not reached"


def _at_most(value: float | None, aim: float) -> str:
    if value is None:
        return NOT_MEASURED
    shown = round(value, 2)
    return f"{shown:.0%}" if shown <= aim else f"{shown:.0%}: not reached"


def _over(numerator: float | None, denominator: float | None) -> float | None:
    return None if numerator is None or not denominator else numerator / denominator


def _plain(value: float | None) -> str:
    return "-" if value is None else f"x{value:.2f}"


def _ratio(figures: Figures, network: str, what: str, part: str, case: Case, aim: float) -> Row:
    times = figures.peers(network, part, case, "ms")
    best = min(times, key=lambda name: times[name], default=None)
    theirs = None if best is None else times[best]
    now, before = (_over(theirs, figures.value(network, name, part, case, "ms")) for name in (OURS, BEFORE))
    if before is not None and figures.run(network, [BEFORE], [part], case) != figures.run(
        network, [*times], [part], case
    ):
        before = None  # the processor's part of the time differs from run to run
    shown = "-" if best is None else f"{best}, {theirs:.2f} ms"
    least = min(figures.peers(network, part, case, "cuda_ms").values(), default=None)
    of_kernels = _over(least, figures.value(network, OURS, part, case, "cuda_ms"))
    cells = what, f"x{aim:g}", _plain(before), _at_least(now, aim), _plain(of_kernels), shown
    return cells, figures.run(network, [OURS, *_peers(network)], [part], case)


def _memory(figures: Figures, network: str, ours: str, what: str, case: Case, aim: float) -> Row:
    peaks = figures.peers(network, "train", case, "peak_mib")
    best = min(peaks, key=lambda name: peaks[name], default=None)
    theirs = None if best is None else peaks[best]
    now = _over(figures.value(network, ours, "train", case, "peak_mib"), theirs)
    before = _over(figures.value(network, BEFORE, "train", case, "peak_mib"), theirs) if ours == OURS else None
    shown = "-" if best is None else f"{best}, {theirs:.0f} MiB"
    cells = what, f"{aim:.0%}", "-" if before is None else f"{before:.0%}", _at_most(now, aim), "-", shown
    return cells, figures.run(network, [ours, *_peers(network)], ["train"], case)


def _light_time(figures: Figures, network: str, case: Case) -> Row:
    light, plain = (figures.value(network, name, "train", case, "ms") for name in (LIGHT, OURS))
    what = f"time with `with_cp` over without, {_image(case)}"
    kernels = _over(*(figures.value(network, name, "train", case, "cuda_ms") for name in (LIGHT, OURS)))
    of_kernels = "-" if kernels is None else f"{kernels:.0%}"
    cells = what, f"{LIGHT_TIME:.0%}", "-", _at_most(_over(light, plain), LIGHT_TIME), of_kernels, "-"
    return cells, figures.run(network, [OURS, LIGHT], ["train"], case)


def _fastest(figures: Figures, network: str, aim: float) -> Row:
    ours, before = (figures.fastest_inference(network, [name]) for name in (OURS, BEFORE))
    theirs = figures.fastest_inference(network, _peers(network))
    best = None if theirs is None else theirs[0]
    now, then = (_over(best, None if found is None else found[0]) for found in (ours, before))
    form = "" if ours is None else f" ({ours[2]})"
    shown = "-" if theirs is None else f"{theirs[1]}, {theirs[2]}, {theirs[0]:.2f} ms"
    what = f"compiled or CUDA graph, inference, {_image(INFER_800)}"
    cells = what, f"x{aim:g}", _plain(then), _at_least(now, aim) + (form if now is not None else ""), "-", shown
    return cells, figures.run(network, [OURS, *_peers(network)], FASTEST, INFER_800)


def _python(figures: Figures) -> str:
    lines = [
        "\n## Time that is not CUDA's\n\n"
        f"Wall clock of a training step over its CUDA time, {_image(TRAIN_512)}: at most {WALL_OVER_CUDA:.0%}. Images\n"
        "of one size allow to capture the whole step as a CUDA graph, whose kernels start by one call.\n\n"
        "| network | before | now | as a CUDA graph |\n| --- | --- | --- | --- |\n"
    ]
    for network in AIMS:
        now, before, captured = (
            _over(*(figures.value(network, name, "train", TRAIN_512, value) for value in (wall, "cuda_ms")))
            for name, wall in ((OURS, "ms"), (BEFORE, "ms"), (OURS, "graph_ms"))
        )
        shown = "-" if before is None else f"{before:.0%}"
        mark = _mark(figures.run(network, [OURS], ["train"], TRAIN_512))
        cells = shown, _at_most(now, WALL_OVER_CUDA), _at_most(captured, WALL_OVER_CUDA)
        lines.append(f"| {TITLES[network]}{mark} | {' | '.join(cells)} |\n")
    return "".join(lines)


_COLUMNS = {
    "train": (
        "Training",
        ("wall", "x", "CUDA", "kernels", "graph", "x", "peak", "x"),
        lambda row, ours: (
            *_time(row, ours),
            _cuda(row),
            _number(row.get("kernels"), 0),
            *_graph(row, ours),
            *_peak(row, ours),
        ),
    ),
    "inference": (
        "Inference",
        ("wall", "x", "CUDA", "kernels", "graph", "x", "peak", "x"),
        lambda row, ours: (
            *_time(row, ours),
            _cuda(row),
            _number(row.get("kernels"), 0),
            *_graph(row, ours),
            *_peak(row, ours),
        ),
    ),
    "compiled": (
        "Compiled",
        ("wall", "x", "CUDA", "kernels", "graph", "x", "peak", "x", "compiling, s"),
        lambda row, ours: (
            *_time(row, ours),
            _cuda(row),
            _number(row.get("kernels"), 0),
            *_graph(row, ours),
            *_peak(row, ours),
            _number(row.get("compile_cpu_s"), 0),
        ),
    ),
    "large": (
        "Large images, inference",
        ("wall", "x", "peak", "x"),
        lambda row, ours: (*_time(row, ours), *_peak(row, ours)),
    ),
}
"""By part: its title, its columns, and what they hold for a row and the row of ours."""


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _cuda(row: Mapping[str, Any]) -> str:
    return _number(row.get("cuda_ms"), 2) + ("" if _is_of_the_run(row) else f" {NOT_OF_THE_RUN}")


def _share(row: Mapping[str, Any], ours: Mapping[str, Any], name: str) -> str:
    mine = ours.get(name)
    is_comparable = mine and row.get(name) is not None and row["machine"] == ours["machine"]
    return f"{row[name] / mine:.2f}" if is_comparable else "-"


def _time(row: Mapping[str, Any], ours: Mapping[str, Any]) -> tuple[str, str]:
    return _number(row.get("ms"), 2), _share(row, ours, "ms")


def _graph(row: Mapping[str, Any], ours: Mapping[str, Any]) -> tuple[str, str]:
    if "graph_failure" in row:
        return row["graph_failure"].replace("|", "/"), "-"
    return _number(row.get("graph_ms"), 2), _share(row, ours, "graph_ms")


def _peak(row: Mapping[str, Any], ours: Mapping[str, Any]) -> tuple[str, str]:
    return _number(row.get("peak_mib"), 0), _share(row, ours, "peak_mib")


def _tables(figures: Figures, network: str) -> str:
    return "".join(_table(figures, network, part) for part in _COLUMNS)


def _table(figures: Figures, network: str, part: str) -> str:
    title, columns, cells = _COLUMNS[part]
    lines: list[str] = []
    for case in CASES[part]:
        ours = figures.of(network, OURS, part, case) or {}
        for contender in CONTENDERS[network]:
            row = figures.of(network, contender.name, part, case)
            if row is None:
                continue
            image = f"{case.mode}, {_image(case)}" if part == "compiled" else _image(case)
            values: Sequence[str] = cells(row, ours)
            if "failure" in row:
                values = (row["failure"].replace("|", "/"), *("" for _ in columns[1:]))
            lines.append(f"| {image} | {contender.name}{_mark(row['run'])} | {' | '.join(values)} |\n")
    if not lines:
        return ""
    header = f"| image | implementation | {' | '.join(columns)} |\n{'| --- ' * (len(columns) + 2)}|\n"
    return f"\n### {title}\n\n{header}{''.join(lines)}"
