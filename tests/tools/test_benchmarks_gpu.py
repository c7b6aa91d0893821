"""The benchmark on a GPU, without one: what it measures, how its processes take turns, and the page that it makes."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.paths import ROOT
from helpers.toys import BY_FAMILY
from mm_vitbackbones.backbones import Backbone
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.registry import BACKBONES
from tools.benchmarks import report
from tools.benchmarks.gpu import command, contenders, figures, measuring, page, planning, running, worker
from tools.benchmarks.gpu.cases import CASES, INFER_512, INFER_800, PARTS, TRAIN_512, TRAIN_800, Task, tasks
from tools.benchmarks.gpu.contenders import BEFORE, BEST_COMPILED, CONTENDERS, LIGHT, OURS, Contender

NETWORK = "pvt_s"


def record(contender: str, part: str, case: Any, what: str = "time", network: str = NETWORK, **values: Any) -> Any:
    return json.loads(json.dumps({**Task(network, contender, part, case, what).to_json(), **values}))


# ---- what is measured


def test_each_contender_is_measured_in_each_of_its_cases_once() -> None:
    found = tasks(CONTENDERS, PARTS, before=True)
    assert len(found) == len({*found})
    for network, pair in BEST_COMPILED.items():
        mine = [task for task in found if task.network == network]
        assert {task.contender for task in mine if task.part == "compiled"} == {OURS, pair}
        assert {task.contender for task in mine if task.part == "train"} == {c.name for c in CONTENDERS[network]}
        assert LIGHT not in {task.contender for task in mine if task.part == "inference"}
        assert {task.contender for task in mine if task.part == "large"} == {
            contender.name for contender in CONTENDERS[network] if contender.name not in (LIGHT, BEFORE)
        }
    assert BEFORE not in {task.contender for task in tasks(CONTENDERS, PARTS, before=False)}


def test_inference_and_the_training_whose_kernels_are_compared_with_the_clock_are_captured() -> None:
    captured = {task for task in tasks([NETWORK], PARTS, before=False) if worker.has_graph(task, "cuda")}
    assert {(task.part, task.case) for task in captured} == {
        ("train", TRAIN_512),
        ("inference", INFER_512),
        ("inference", INFER_800),
        ("compiled", INFER_800),
    }
    assert not any(worker.has_graph(task, "cpu") for task in captured)


def test_every_network_has_aims_a_title_and_a_compiled_peer() -> None:
    assert {*CONTENDERS} == {*page.AIMS} == {*page.TITLES} == {*BEST_COMPILED}
    assert planning.FIRST.issubset(CONTENDERS)
    for network, peer in BEST_COMPILED.items():
        assert contenders.find(network, peer).name not in (OURS, LIGHT, BEFORE)


def test_every_family_is_measured_under_a_name_that_builds_it() -> None:
    families = set()
    with torch.device("meta"):
        for network, known in CONTENDERS.items():
            assert len(known) >= 4  # ours in three forms, and another one
            families.add(type(backbone_of(network, OURS)))
        assert backbone_of(NETWORK, OURS).recompute != backbone_of(NETWORK, LIGHT).recompute
    registered = {family for family in BACKBONES.module_dict.values() if issubclass(family, Backbone)}
    assert {family.__name__ for family in registered - families} == {
        name for name, family in BY_FAMILY.items() if not family.benchmark_on_gpu
    }


def backbone_of(network: str, name: str) -> Backbone:
    (found,) = (m for m in contenders.find(network, name).build().modules() if isinstance(m, Backbone))
    return found


def test_tasks_survive_the_way_through_json() -> None:
    for task in tasks([NETWORK], PARTS, before=True):
        assert Task.from_json(json.loads(json.dumps(task.to_json()))) == task


def test_mmcv_without_compiled_operators_has_a_stand_in_that_refuses_calls() -> None:
    stand_in = contenders._Absent("mmcv._ext")
    assert hasattr(stand_in, "nms")
    assert not hasattr(stand_in, "__path__")
    with pytest.raises(RuntimeError, match="nms"):
        stand_in.nms()


# ---- what comes first


def test_what_the_page_lacks_comes_first_then_what_it_has_of_an_earlier_run() -> None:
    wanted = tasks([NETWORK, "cait_s24", "coat_mini"], PARTS, before=False)
    records = [{**task.to_json(), "ms": 1.0} for task in wanted if task.network == NETWORK]
    records += [{**task.to_json(), "ms": 1.0, "run": 1} for task in wanted if task.network == "coat_mini"]
    stages = planning.Known(records).stages(wanted)
    assert {*stages} == {*wanted}
    assert [*stages.values()] == sorted(stages.values())
    later = {task for task in wanted if task.part == "large" or (task.part, task.case) == ("compiled", INFER_800)}
    for task, stage in stages.items():
        if task in later:
            assert stage == (planning.MISSING_LATER if task.network == "cait_s24" else planning.KNOWN_LATER), task
        else:
            expected = {NETWORK: planning.LAST, "cait_s24": planning.MISSING, "coat_mini": planning.EARLIER}
            assert stage == expected[task.network], task


def test_all_contenders_of_a_table_are_measured_in_one_run() -> None:
    wanted = tasks([NETWORK], ["train", "inference"], before=False)
    records = [{**task.to_json(), "ms": 1.0} for task in wanted]
    lacking = [each for each in records if (each["contender"], each["case"]["mode"]) != ("mmdet", "train")]
    stages = planning.Known(lacking).stages(wanted)
    assert {task for task, stage in stages.items() if stage == planning.MISSING} == {
        *tasks([NETWORK], ["train"], False)
    }


@pytest.mark.parametrize(
    ("failure", "stage"),
    [
        ("left out: compiling takes more than 300 s of the processor", planning.MISSING),
        (measuring.OUT_OF_MEMORY, planning.MISSING),
        ("fails: RuntimeError: size mismatch", planning.LAST),
        ("not installed: ImportError: timm", planning.LAST),
    ],
)
def test_what_a_limit_kept_from_compiling_is_missing_and_what_fails_by_itself_is_known(
    failure: str, stage: int
) -> None:
    wanted = [Task(NETWORK, name, "compiled", TRAIN_512, "time") for name in (OURS, "mmdet")]
    known = planning.Known([{**wanted[0].to_json(), "ms": 1.0}, {**wanted[1].to_json(), "failure": failure}])
    assert {*known.stages(wanted).values()} == {stage}
    eager = Task(NETWORK, "mmdet", "train", TRAIN_512, "time")  # has had the card to itself before it fails
    assert planning.Known([{**eager.to_json(), "failure": failure}]).stages([eager]) == {eager: planning.LAST}


def test_a_process_takes_what_its_tasks_were_measured_to_take() -> None:
    compiled, eager = (Task(NETWORK, OURS, part, TRAIN_512, "time") for part in ("compiled", "train"))
    known = planning.Known([{**eager.to_json(), "ms": 1.0, "peak_mib": 8192.0}])
    assert known.gib([eager]) == known.gib([compiled, eager]) == 8 + planning.GIB_OF_A_PROCESS
    assert known.gib([compiled]) == 8 * planning.SHARE_OF_COMPILING + planning.GIB_OF_A_PROCESS
    assert planning.Known([]).gib([eager]) == planning.GIB_OF_A_TRAINING + planning.GIB_OF_A_PROCESS


def test_each_compilation_has_a_process_and_the_rest_of_a_network_one_for_each_stage() -> None:
    wanted = tasks([NETWORK, "mit_b2", "pit_s"], PARTS, before=True)
    runs = {"mit_b2": 1, "pit_s": 0}
    records = [{**task.to_json(), "run": runs[task.network]} for task in wanted if task.network in runs]
    known = planning.Known(records)
    found = running.jobs(known.stages(wanted), known)
    assert [(job.kind, job.stage) for job in found] == [
        ("eager", planning.MISSING),
        ("before", planning.MISSING),
        ("eager", planning.EARLIER),
        ("before", planning.EARLIER),
        ("eager", planning.LAST),
        ("before", planning.LAST),
        *[("compiled", planning.MISSING)] * 2,
        *[("compiled", planning.EARLIER)] * 2,
        *[("compiled", planning.LAST)] * 2,
        ("eager", planning.MISSING_LATER),
        *[("compiled", planning.MISSING_LATER)] * 2,
        *[("eager", planning.KNOWN_LATER)] * 2,
        *[("compiled", planning.KNOWN_LATER)] * 4,
    ]
    together = running.jobs(known.stages(wanted), known, together=True)
    assert [job.kind for job in together] == ["eager", "before"] * 3 + ["compiled"] * 3
    for each in (found, together):
        assert sorted(str(task) for job in each for task in job.tasks) == sorted(map(str, wanted))


def test_networks_of_the_first_table_come_first_compiled_training_included() -> None:
    wanted = tasks(["vit_s", NETWORK], PARTS, before=False)
    known = planning.Known([task.to_json() for task in wanted if task.network == "vit_s"])
    found = running.jobs(known.stages(wanted), known)
    assert [(job.kind, job.tasks[0].network) for job in found if job.stage < planning.MISSING_LATER] == [
        ("eager", NETWORK),
        *[("compiled", NETWORK)] * 2,
        ("eager", "vit_s"),
        *[("compiled", "vit_s")] * 2,
    ]


# ---- one process


class Network(nn.Module):
    """Its ``train`` returns nothing, as mmdet's Swin's."""

    def __init__(self, error: str = "") -> None:
        super().__init__()
        self.error = error
        self.scale = nn.Parameter(torch.ones(()))

    def train(self, mode: bool = True) -> Any:
        super().train(mode)

    def forward(self, image: Tensor) -> tuple[Tensor]:
        if self.error:
            raise RuntimeError(self.error)
        return (image * self.scale,)


class Listener:
    """In place of the process that started a worker."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.turns = 0

    def write(self, **message: Any) -> None:
        assert [*message] == ["begin"]

    def record(self, task: Task, **values: Any) -> None:
        self.records.append({"task": task, **values})

    @contextmanager
    def alone(self) -> Iterator[None]:
        self.turns += 1
        yield


def absent() -> nn.Module:
    raise ImportError("no such package")


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    known = (
        Contender(OURS, Network),
        Contender("broken", lambda: Network("size mismatch\nmore")),
        Contender("absent", absent),
    )
    monkeypatch.setitem(CONTENDERS, "toy", known)
    monkeypatch.setitem(BEST_COMPILED, "toy", "broken")


TRIAL = {"device": "cpu", "smoke": True}


def test_a_worker_measures_all_or_says_why_not_and_profiles_last(toys: None) -> None:
    listener = Listener()
    wanted = tasks(["toy"], ["train", "inference"], before=False)
    worker.eager(wanted, TRIAL, listener)  # type: ignore[arg-type]
    assert {found["task"] for found in listener.records} == {*wanted}
    kinds = [found["task"].what for found in listener.records]
    assert kinds == sorted(kinds, reverse=True)  # time, then kernels
    for found in listener.records:
        name, what = found["task"].contender, found["task"].what
        if name == OURS:
            assert found["ms" if what == "time" else "kernels"] > 0
        else:
            reason = {"broken": "fails: RuntimeError: size mismatch", "absent": "not installed"}[name]
            assert found["failure"].startswith(reason)
            assert "more" not in found["failure"]
    assert listener.turns >= 2 * len(CASES["train"]) + 2 * len(CASES["inference"])


def test_contenders_of_a_case_take_turns_and_one_that_fails_takes_no_more(
    toys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    class Recorded(measuring.Clock):
        def turn(self) -> None:
            calls.append(id(self))
            if len(calls) == 4:
                raise RuntimeError("out of luck")

    monkeypatch.setattr(measuring, "Clock", Recorded)
    monkeypatch.setitem(CONTENDERS, "toy", tuple(Contender(name, Network) for name in (OURS, "first", "second")))
    listener = Listener()
    wanted = [Task("toy", name, "train", TRAIN_512, "time") for name in (OURS, "first", "second")]
    worker.eager(wanted, TRIAL, listener)  # type: ignore[arg-type]
    ours, first, second = calls[:3]
    assert len({ours, first, second}) == 3
    assert calls == [ours, first, second] + [ours, first, second] + [first, second] * (measuring.TURNS - 2)
    assert [found.get("failure") for found in listener.records] == ["fails: RuntimeError: out of luck", None, None]
    assert listener.turns == 1  # the other processes stand still once


@pytest.mark.parametrize("took", [[9.0, 0.06, *[0.06] * 10, 0.04, 0.05], [9.0, 0.7]])
def test_the_least_time_of_several_groups_counts_or_that_of_one_long_run(
    took: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    left, now = [*took], [0.0]

    def run() -> None:
        now[0] += left.pop(0)

    monkeypatch.setattr(measuring, "synchronize", lambda device: None)
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: now[0])
    clock = measuring.Clock(run, "cuda")
    clock.begin()
    for _ in range((len(took) - 2) // 2 or 1):
        clock.turn()
    assert not left
    assert clock.milliseconds == pytest.approx(45.0 if len(took) > 2 else 700.0)  # of groups of two runs


@pytest.mark.slow
def test_a_worker_measures_what_is_compiled(toys: None) -> None:
    listener = Listener()
    worker.compiled(tasks(["toy"], ["compiled"], before=False), TRIAL, listener)  # type: ignore[arg-type]
    ours = [found for found in listener.records if found["task"].contender == OURS]
    assert [found["task"].case for found in ours] == [TRAIN_512, INFER_800]
    assert all(found["ms"] > 0 and found["compile_s"] > 0 and found["kernels"] > 0 for found in ours), ours
    assert ours[1]["difference"] < 1e-2
    assert all("size mismatch" in found["failure"] for found in listener.records if found not in ours)


@pytest.mark.parametrize("profiler", ["works", "fails"])
def test_the_kernels_of_what_is_compiled_come_last_and_cost_no_time_that_was_measured(
    profiler: str, toys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def kernels(run: measuring.Run, device: str) -> tuple[float, int]:
        steps.append("kernels")
        if profiler == "fails":
            raise RuntimeError("no profiler")
        return 5.0, 7

    monkeypatch.setattr(torch, "compile", lambda network, **options: network)
    monkeypatch.setattr(measuring, "milliseconds", lambda run, device: steps.append("wall") or 1.0)
    monkeypatch.setattr(measuring, "kernels", kernels)
    worker._start_profiler.cache_clear()
    listener = Listener()
    found = worker._compiled(Task("toy", OURS, "compiled", TRAIN_512, "time"), TRIAL, listener)  # type: ignore[arg-type]
    assert steps[0] == "wall"
    assert "kernels" in steps
    assert found["ms"] == 1.0
    if profiler == "works":
        assert (found["cuda_ms"], found["kernels"]) == (5.0, 7)
        assert listener.turns == 2
    else:
        assert found["kernels_failure"] == "fails: RuntimeError: no profiler"


# ---- several processes

PROGRAM = """
import json, os, sys, time
def say(**message): print(json.dumps(message), flush=True)
order = json.loads(sys.stdin.readline())
for task in order["tasks"]:
    say(begin=task)
    if task["contender"] == "mmdet" and task["part"] == "inference": os._exit(3)
    say(ask=True)
    sys.stdin.readline()
    start = time.time()
    time.sleep(0.03)
    say(done=True)
    say(record={**task, "ms": 1.0, "span": [start, start + 0.03]})
"""
ROOM = running.Room(6, 2, 100.0)


def run(
    tmp_path: Path,
    wanted: list[Task],
    program: str = PROGRAM,
    seconds: float = 60.0,
    room: running.Room = ROOM,
    compile_seconds: float = 60.0,
    records: tuple[Any, ...] = (),
    alone_seconds: float = 60.0,
) -> tuple[bool, list[Any]]:
    kept: list[Any] = []
    known = planning.Known(records)
    plan = running.Plan("cpu", True, ROOT, time.monotonic() + seconds, room, compile_seconds, alone_seconds, program)
    jobs = running.jobs(known.stages(wanted), known)
    finished = running.Runner(plan, kept.append, tmp_path / "log").run(jobs)
    return finished, kept


def test_processes_measure_alone_and_one_that_breaks_down_costs_one_task(tmp_path: Path) -> None:
    wanted = tasks([NETWORK], PARTS, before=True)
    finished, kept = run(tmp_path, wanted)
    assert finished
    assert sorted(str(Task.from_json(each)) for each in kept) == sorted(map(str, wanted))
    failed = [each for each in kept if "failure" in each]
    assert {(each["contender"], each["part"]) for each in failed} == {("mmdet", "inference")}
    assert {each["failure"] for each in failed} == {"fails: its process ended with 3"}
    spans = sorted(each["span"] for each in kept if "span" in each)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


BUSY = """
import json, os, sys, time
def say(**message): print(json.dumps(message), flush=True)
task = json.loads(sys.stdin.readline())["tasks"][0]
if task["contender"] == "ours":
    while not os.path.exists(BEGUN): time.sleep(0.01)
    say(ask=True)
    sys.stdin.readline()
    start = time.time()
    time.sleep(0.5)
    say(done=True)
    say(record={**task, "span": [start, start + 0.5]})
else:
    gaps, last = [], time.time()
    open(BEGUN, "w").close()
    while not gaps or max(gaps)[0] < 0.4 and len(gaps) < 1000:
        time.sleep(0.01)
        now = time.time()
        gaps.append((now - last, last, now))
        last = now
    say(record={**task, "longest": max(gaps)})
"""


def test_the_others_stand_still_while_one_measures(tmp_path: Path) -> None:
    wanted = [Task(NETWORK, name, "compiled", TRAIN_512, "time") for name in (OURS,)]
    wanted += [Task(NETWORK, "mmdet", "compiled", INFER_800, "time")]
    _, kept = run(tmp_path, wanted, f"BEGUN = {str(tmp_path / 'begun')!r}\n{BUSY}")
    ours, other = sorted(kept, key=lambda each: each["contender"] != OURS)
    length, start, end = other["longest"]
    assert length > 0.4
    assert start < ours["span"][1]
    assert end > ours["span"][0] + 0.4


def test_a_run_stops_at_its_limit_and_ends_its_processes(tmp_path: Path) -> None:
    started = time.monotonic()
    finished, kept = run(tmp_path, tasks([NETWORK], ["train"], before=False), "import time; time.sleep(100)", 0.5)
    assert not finished
    assert kept == []
    assert time.monotonic() - started < 20


def test_a_run_that_is_ended_ends_its_processes(tmp_path: Path) -> None:
    program = f"""
import os, signal, time
open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
os.kill(os.getppid(), signal.SIGTERM)
time.sleep(60)
"""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit) as left:
            run(tmp_path, tasks([NETWORK], ["train"], before=False), program, seconds=10.0)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert left.value.code == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


KILLED = """
import os, signal, subprocess, sys
worker = "import sys; from tools.benchmarks.gpu import lifetime; lifetime.end_with_parent(); print(); sys.stdin.read()"
pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
started = subprocess.Popen(
    [sys.executable, "-c", worker], stdin=pipe, stdout=pipe, stderr=nowhere, start_new_session=True
)
started.stdout.readline()
os.kill(started.pid, signal.SIGSTOP)
print(started.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux ends a process with the one that started it"
)
def test_a_process_that_stands_still_ends_with_a_run_that_is_killed() -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED], cwd=ROOT, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    pid, deadline = int(killed.stdout), time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    left = is_alive(pid)
    if left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def is_alive(pid: int) -> bool:
    """Whether it runs or stands still; one that has ended may wait for somebody to ask."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


SPAN = """
import json, sys, time
def say(**message): print(json.dumps(message), flush=True)
start = time.time()
for task in json.loads(sys.stdin.readline())["tasks"]:
    time.sleep(0.05)
    say(record={**task, "span": [start, time.time()]})
"""
"""Measures without being alone."""


def spans(kept: list[Any]) -> dict[tuple[str, str], tuple[float, float]]:
    """The first and the last moment of each contender's part."""
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for each in kept:
        start, end = found.get((each["contender"], each["part"]), (float("inf"), 0.0))
        found[each["contender"], each["part"]] = min(start, each["span"][0]), max(end, each["span"][1])
    return found


def test_what_comes_later_waits_until_nothing_before_it_does(tmp_path: Path) -> None:
    wanted = tasks([NETWORK, "vit_s"], ["train"], before=False)
    later = Task(NETWORK, OURS, "compiled", INFER_800, "time")
    _, kept = run(tmp_path, [later, *wanted], SPAN, room=running.Room(3, 1, 100.0))
    assert len(kept) == 1 + len(wanted)
    (start,) = (each["span"][0] for each in kept if each["part"] == "compiled")
    assert start > max(each["span"][1] for each in kept if each["network"] == NETWORK and each["part"] == "train")


def test_processes_fit_the_memory_of_the_card(tmp_path: Path) -> None:
    wanted = [Task("vit_s", name, "compiled", TRAIN_512, "time") for name in (OURS, "timm", "transformers")]
    gib = planning.Known([]).gib(wanted)
    _, kept = run(tmp_path, wanted, SPAN, room=running.Room(6, 2, 1.5 * gib))
    ends = sorted(spans(kept).values())
    assert len(ends) == 3
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(ends))


FULL = """
import json, os, sys, time
def say(**message): print(json.dumps(message), flush=True)
task = json.loads(sys.stdin.readline())["tasks"][0]
with open(FREED + " starts", "a") as file: print(task["contender"], file=file)
if task["contender"] == "ours" and not os.path.exists(FREED):
    say(record={**task, "failure": "fails: out of memory"})
elif task["contender"] == "ours":
    say(record={**task, "ms": 1.0})
else:
    time.sleep(1.0)
    open(FREED, "w").close()
    say(record={**task, "ms": 1.0})
"""


def test_what_runs_out_of_memory_among_others_is_measured_again_when_they_have_ended(tmp_path: Path) -> None:
    wanted = [Task("vit_s", name, "compiled", TRAIN_512, "time") for name in (OURS, "timm")]
    program = f"FREED = {str(tmp_path / 'freed')!r}\n{FULL}"
    _, kept = run(tmp_path, wanted, program)
    assert [(each["contender"], each.get("ms")) for each in kept] == [("timm", 1.0), (OURS, 1.0)]
    assert sorted((tmp_path / "freed starts").read_text().split()) == [OURS, OURS, "timm"]
    (tmp_path / "freed").unlink()
    _, kept = run(tmp_path, wanted[:1], program)
    assert [each["failure"] for each in kept] == [measuring.OUT_OF_MEMORY]


LONG = """
import json, subprocess, sys, time
def say(**message): print(json.dumps(message), flush=True)
task = json.loads(sys.stdin.readline())["tasks"][0]
say(begin=task)
if task["contender"] == "transformers": time.sleep(1.5)
while task["contender"] == "timm": subprocess.run([sys.executable, "-c", "sum(range(2_000_000))"])
while task["contender"] == "ours" and task["part"] == "compiled": pass
spent = time.process_time()
while task["part"] != "compiled" and time.process_time() < spent + 1.5: pass
say(record={**task, "ms": 1.0})
"""
"""Compiled, ``transformers`` waits, ``ours`` and programs that ``timm`` starts work without an end."""


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="only Linux says what a process has used")
def test_what_takes_too_many_seconds_of_the_processor_to_compile_is_left_out(tmp_path: Path) -> None:
    wanted = [Task("vit_s", name, "compiled", TRAIN_512, "time") for name in (OURS, "transformers", "timm")]
    wanted.append(Task("vit_s", OURS, "large", CASES["large"][0], "time"))
    finished, kept = run(tmp_path, wanted, LONG, compile_seconds=1.0)
    assert finished
    left_out = "left out: compiling takes more than 1 s of the processor"
    assert {(each["contender"], each["part"]): each.get("failure") for each in kept} == {
        (OURS, "compiled"): left_out,
        ("timm", "compiled"): left_out,
        ("transformers", "compiled"): None,
        (OURS, "large"): None,
    }
    assert not any(planning.is_settled(each) for each in kept if "failure" in each)


HANGING = """
import json, os, sys, time
task = json.loads(sys.stdin.readline())["tasks"][0]
def say(**message): print(json.dumps(message), flush=True)
if task["contender"] == "timm":
    while not os.path.exists(ALONE): time.sleep(0.01)
say(ask=True)
sys.stdin.readline()
open(ALONE, "w").close()
while task["contender"] == "ours": time.sleep(1)
say(done=True)
say(record={**task, "ms": 1.0})
"""


def test_one_that_hangs_while_the_others_stand_still_is_ended(tmp_path: Path) -> None:
    wanted = [Task(NETWORK, name, "compiled", TRAIN_512, "time") for name in (OURS, "timm")]
    program = f"ALONE = {str(tmp_path / 'alone')!r}\n{HANGING}"
    finished, kept = run(tmp_path, wanted, program, alone_seconds=0.5)
    assert finished
    assert [(each["contender"], each.get("failure")) for each in kept] == [
        (OURS, "fails: it measured for more than 0.5 s"),
        ("timm", None),
    ]


PATIENT = """
import json, os, sys, time
for task in json.loads(sys.stdin.readline())["tasks"]:
    if task["part"] == "compiled":
        while len(os.listdir(EAGER)) < COUNT: time.sleep(0.01)
    else:
        open(f"{EAGER}/{os.getpid()} {time.time()}", "w").close()
    print(json.dumps({"record": {**task, "ms": 1.0}}), flush=True)
"""
"""Compiling lasts until everything eager is measured."""


def test_what_is_eager_waits_for_no_compilation_though_an_earlier_run_has_it(tmp_path: Path) -> None:
    wanted = tasks([NETWORK, "mit_b2", "pit_s"], ["train", "inference", "compiled"], before=False)
    eager = [task for task in wanted if task.part != "compiled"]
    records = tuple({**task.to_json(), "ms": 1.0} for task in eager if task.network != "mit_b2")
    (tmp_path / "eager").mkdir()
    program = f"EAGER, COUNT = {str(tmp_path / 'eager')!r}, {len(eager)}\n{PATIENT}"
    finished, kept = run(tmp_path, wanted, program, seconds=30.0, room=running.Room(4, 2, 1000.0), records=records)
    assert finished
    assert len(kept) == len(wanted)


def test_there_is_a_process_for_each_two_cores_but_one_where_they_are_few() -> None:
    assert running.room(2, 0).processes == running.room(2, 0).eager == 1
    for cores, memory in ((16, 80), (16, 141), (32, 80)):
        found = running.room(cores, memory)
        assert found.processes == cores // 2
        assert 1 < found.eager < running.room(cores, memory, compiles=False).eager == cores // 2
        assert found.gib < memory


# ---- the report


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """The tasks that are measured, which takes no time here."""
    found: list[Task] = []

    def run(self: running.Runner, jobs: list[running.Job]) -> bool:
        for job in jobs:
            for task in job.tasks:
                found.append(task)
                self.keep({**task.to_json(), "ms": 2.0})
        return True

    monkeypatch.setattr(running.Runner, "run", run)
    return found


def test_a_report_goes_on_where_it_stopped(asked: list[Task], tmp_path: Path) -> None:
    command.report(tmp_path, [NETWORK], ["train"], device="cpu")
    assert asked == tasks([NETWORK], ["train"], before=False)
    del asked[:]
    command.report(tmp_path, [NETWORK], ["train", "large"], device="cpu")
    assert asked == tasks([NETWORK], ["large"], before=False)
    data = json.loads((tmp_path / "benchmarks_gpu.json").read_text())
    assert len(data["records"]) == len(tasks([NETWORK], ["train", "large"], before=False))
    assert (tmp_path / "benchmarks_gpu.md").read_text() == page.page(data)


def test_a_report_goes_on_where_it_was_ended_while_it_wrote(asked: list[Task], tmp_path: Path) -> None:
    command.report(tmp_path, [NETWORK], ["large"], device="cpu")
    path = tmp_path / "benchmarks_gpu.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-20])
    last = asked[-1]
    del asked[:]
    command.report(tmp_path, [NETWORK], ["large"], device="cpu")
    assert asked == [last]
    assert path.read_text() == whole


def test_a_report_tries_again_what_it_had_left_out(asked: list[Task], tmp_path: Path) -> None:
    command.report(tmp_path, [NETWORK], ["compiled"], device="cpu")
    path = tmp_path / "benchmarks_gpu.jsonl"
    *lines, last = path.read_text().splitlines()
    left_out = json.loads(last) | {"failure": f"{planning.LEFT_OUT}compiling takes more than 1 s of the processor"}
    path.write_text("".join(f"{line}\n" for line in (*lines, json.dumps({**left_out, "ms": None}))))
    task = asked[-1]
    del asked[:]
    command.report(tmp_path, [NETWORK], ["compiled"], device="cpu")
    assert asked == [task]
    data = json.loads((tmp_path / "benchmarks_gpu.json").read_text())
    assert [each["ms"] for each in data["records"]] == [2.0] * len(tasks([NETWORK], ["compiled"], before=False))
    assert "left out" not in (tmp_path / "benchmarks_gpu.md").read_text()


def test_a_report_begins_with_what_the_figures_lack(asked: list[Task], tmp_path: Path) -> None:
    wanted = tasks([NETWORK, "mit_b2"], ["train"], before=False)
    known = [{**task.to_json(), "ms": 1.0} for task in wanted if task.network == NETWORK]
    (tmp_path / "docs").mkdir()
    data = {"runs": [{"machine": "another", "date": "2026-01-01"}], "records": known}
    (tmp_path / "docs" / "benchmarks_gpu.json").write_text(json.dumps(data))
    command.report(tmp_path / "run", [NETWORK, "mit_b2"], ["train"], device="cpu", known=tmp_path / "docs")
    assert [task.network for task in asked] == sorted(task.network for task in wanted)


def test_figures_of_two_cards_are_not_mixed(asked: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command.report(tmp_path, [NETWORK], ["large"], device="cpu")
    with pytest.raises(UserError, match="another machine"):
        command.report(tmp_path, [NETWORK], ["train"], device="cpu", smoke=True)
    monkeypatch.setattr(command, "_driver", lambda: "another")
    with pytest.raises(UserError, match="another machine"):
        command.report(tmp_path, [NETWORK], ["train"], device="cpu")


# ---- figures of several runs

MACHINE = {"card": "A card", "driver": "1.2", "torch": "2.11", "peers": {"timm": "1.0.29"}}
OTHER = {**MACHINE, "card": "Another card"}
OLD = {"machine": MACHINE, "date": "2026-01-01"}
NEW = {"machine": MACHINE, "date": "2026-02-02", "turns": 5}


def test_merging_keeps_what_a_run_has_no_figure_of_and_names_its_run() -> None:
    train, infer = (record(OURS, case.mode, case, ms=1.0) for case in (TRAIN_512, INFER_800))
    profiled = record(OURS, "train", TRAIN_512, "kernels", cuda_ms=1.0)
    older = {**record("mmdet", "train", TRAIN_512, ms=3.0), "run": 1}
    unknown = record("no longer measured", "train", TRAIN_512, ms=4.0)
    others = {"runs": [OLD, {**OLD, "date": "2025-01-01"}], "records": [train, profiled, infer, older, unknown]}
    new = record(OURS, "train", TRAIN_512, ms=9.0)
    data = figures.merged({**NEW, "records": [new]}, others)
    assert data["records"] == [new, {**infer, "run": 1}, {**older, "run": 2}]  # kernels are of the run of their time
    assert [run["date"] for run in data["runs"]] == ["2026-02-02", "2026-01-01", "2025-01-01"]
    assert figures.merged({**NEW, "records": [new]}, data) == data
    rest = [record(OURS, "inference", INFER_800, ms=8.0), record("mmdet", "train", TRAIN_512, ms=7.0)]
    assert figures.merged({**NEW, "records": [new, *rest]}, data) == {"runs": [NEW], "records": [new, *rest]}


def test_what_a_run_had_to_leave_out_takes_the_place_of_no_figure() -> None:
    known = record(OURS, "compiled", TRAIN_512, ms=1.0)
    late = record(OURS, "compiled", TRAIN_512, failure=f"{planning.LEFT_OUT}compiling takes more than 1 s")
    data = figures.merged({**NEW, "records": [late]}, {"runs": [OLD], "records": [known]})
    assert data["records"] == [{**known, "run": 1}]
    failing = record(OURS, "compiled", TRAIN_512, failure="fails: RuntimeError: no")
    assert figures.merged({**NEW, "records": [failing]}, data)["records"] == [failing]


def test_a_table_of_another_machine_stays_until_a_run_has_all_its_contenders() -> None:
    old = [record(name, "train", TRAIN_512, ms=1.0) for name in (OURS, "mmdet", BEFORE)]
    others = {"runs": [{**OLD, "machine": OTHER}], "records": old}
    ours, large = record(OURS, "train", TRAIN_512, ms=9.0), record(OURS, "large", CASES["large"][0], ms=9.0)
    stopped = figures.merged({**NEW, "records": [ours, large]}, others)
    assert stopped["records"] == [large, *({**each, "run": 1} for each in old)]
    whole = [ours, record("mmdet", "train", TRAIN_512, ms=9.0), large]
    assert figures.merged({**NEW, "records": whole}, stopped)["records"] == [*whole, {**old[2], "run": 1}]
    same = {"runs": [OLD], "records": old}
    assert figures.merged({**NEW, "records": [ours]}, same)["records"] == [ours, *({**o, "run": 1} for o in old[1:])]


def test_one_command_adds_a_run_to_the_figures_and_makes_their_page(asked: list[Task], tmp_path: Path) -> None:
    docs, out = tmp_path / "docs", tmp_path / "out"
    docs.mkdir()
    old = [record(OURS, case.mode, case, ms=1.0, network="vit_s") for case in (TRAIN_512, INFER_512)]
    (docs / "benchmarks_gpu.json").write_text(json.dumps({"runs": [OLD], "records": old}))
    command.report(out, [NETWORK], ["train"], device="cpu")
    report.main(["--report", "--merge", str(out), "--out", str(docs)])
    data = figures.read(docs)
    assert [run["date"] for run in data["runs"]] == [figures.read(out)["runs"][0]["date"], "2026-01-01"]
    assert data["records"] == [*figures.read(out)["records"], *({**each, "run": 1} for each in old)]
    text = (docs / "benchmarks_gpu.md").read_text()
    assert text == page.page(data)
    assert "| 512x512 batch 16 | ours \\* | 1.00 |" in text


def test_trials_and_folders_without_a_run_are_not_merged(asked: list[Task], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no benchmarks_gpu\.jsonl in"):
        command.merge(tmp_path, tmp_path / "docs")
    command.report(tmp_path / "trial", [NETWORK], ["large"], device="cpu", smoke=True)
    with pytest.raises(UserError, match="whose figures are of toy images"):
        command.merge(tmp_path / "trial", tmp_path / "docs")
    assert not (tmp_path / "docs").exists()
    (tmp_path / "trial" / "benchmarks_gpu.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="no file of a run"):
        command.merge(tmp_path / "trial", tmp_path / "docs")


# ---- the page


def made(*records: Any, runs: tuple[Any, ...] = (NEW, OLD)) -> str:
    return page.page({"runs": [*runs], "records": [*records]})


def test_the_page_says_what_was_reached_before_and_now() -> None:
    text = made(
        record(OURS, "train", TRAIN_512, ms=10.0, peak_mib=300.0, graph_ms=8.4),
        record(OURS, "train", TRAIN_512, "kernels", cuda_ms=8.0, kernels=900),
        record(BEFORE, "train", TRAIN_512, ms=20.0, peak_mib=100.0),
        record(LIGHT, "train", TRAIN_512, ms=11.0, peak_mib=170.0),
        record("mmdet", "train", TRAIN_512, ms=14.0, peak_mib=400.0),
        record("transformers", "train", TRAIN_512, failure="fails: RuntimeError: a|b"),
        record(OURS, "train", TRAIN_800, ms=10.0, peak_mib=900.0),
        record("mmdet", "train", TRAIN_800, ms=12.0, peak_mib=1000.0),
    )
    assert "A card, driver 1.2, torch 2.11; peers: timm 1.0.29" in text
    assert "| PVT-Small | training, 512x512 batch 16 | x1.3 | x0.70 | x1.40 | - | mmdet, 14.00 ms |" in text
    assert "| PVT-Small | training, 800x1344 batch 2 | x1.3 | - | x1.20: not reached | - | mmdet, 12.00 ms |" in text
    assert "| PVT-Small | memory of training, 512x512 batch 16 | 80% | 25% | 75% | - | mmdet, 400 MiB |" in text
    assert (
        "| PVT-Small | memory with `with_cp`, 512x512 batch 16 | 40% | - | 42%: not reached | - | mmdet, 400 MiB |"
        in text
    )
    assert "| PVT-Small | time with `with_cp` over without, 512x512 batch 16 | 115% | - | 110% | - | - |" in text
    assert "| MiT-B2 | training, 512x512 batch 16 | x1.3 | - | not measured | - | - |" in text
    assert "| PVT-Small | - | 125%: not reached | 105% |" in text
    assert "| 512x512 batch 16 | ours | 10.00 | 1.00 | 8.00 | 900 | 8.40 | 1.00 | 300 | 1.00 |" in text
    assert "| 512x512 batch 16 | transformers | fails: RuntimeError: a/b |  |  |  |  |  |  |  |" in text


def test_the_page_compares_the_durations_of_kernels_and_marks_figures_of_an_earlier_run() -> None:
    timm = record("mmdet", "train", TRAIN_512, ms=30.0, run=1)
    now = record(OURS, "train", TRAIN_512, ms=20.0), record(OURS, "train", TRAIN_512, "kernels", cuda_ms=8.0, kernels=9)
    text = made(*now, timm, record("mmdet", "train", TRAIN_512, "kernels", cuda_ms=20.0, kernels=9, run=1))
    row = "training, 512x512 batch 16 | x1.3 | - | x1.50 | x2.50 | mmdet, 30.00 ms |"
    assert f"| PVT-Small \\* | {row}" in text
    assert "| PVT-Small | training, 800x1344 batch 2 |" in text
    assert "| PVT-Small | - | 250%: not reached | not measured |" in text
    assert "| 512x512 batch 16 | mmdet \\* | 30.00 | 1.50 |" in text
    assert "| 512x512 batch 16 | ours | 20.00 |" in text
    assert "| 512x512 batch 16 | ours \\* | 20.00 |" in made({**now[1], "run": 1}, now[0])
    before = "*wall*: the median of three groups of runs."
    assert f"- \\*: from an earlier run, 2026-01-01, of the version of then, on the same machine. {before}\n" in text
    assert "waits for nothing, the least of 5 groups of runs, in turns with the others" in text
    assert before not in made(*now, timm, runs=(NEW, {**OLD, "turns": 5}))
    assert "Only figures of the same machine" not in text
    assert "of the version of then" not in made(*now, runs=(NEW,))


@pytest.mark.parametrize(("name", "time"), [("ms", 35.0), ("graph_ms", 5.0)])
def test_kernels_that_take_longer_than_the_run_are_marked_and_not_compared(name: str, time: float) -> None:
    part, case = ("train", TRAIN_512) if name == "ms" else ("inference", INFER_512)
    own, theirs = {"ms": 30.0, "graph_ms": 20.0}, {"ms": 50.0, name: time}
    rows = [record(OURS, part, case, **own), record(OURS, part, case, "kernels", cuda_ms=15.0, kernels=9)]
    rows += [record("mmdet", part, case, **theirs), record("mmdet", part, case, "kernels", cuda_ms=87.0, kernels=9)]
    text = made(*rows)
    aim = f"| PVT-Small | {'training' if name == 'ms' else 'inference'}, 512x512 batch 16 | x1.3 | - |"
    (row,) = (line for line in text.splitlines() if line.startswith(aim))
    assert row.split(" | ")[5] == "-"
    assert "| 87.00 † | 9 |" in text
    assert "| 15.00 | 9 |" in text
    rows[3] = record("mmdet", part, case, "kernels", cuda_ms=1.09 * time, kernels=9)
    assert f"| x{1.09 * time / 15:.2f} |" in made(*rows)


def test_a_time_of_the_older_version_is_compared_with_peers_of_its_own_run_alone() -> None:
    now, theirs = record(OURS, "train", TRAIN_512, ms=20.0), record("mmdet", "train", TRAIN_512, ms=30.0)
    older = record(BEFORE, "train", TRAIN_512, ms=60.0, run=1)
    row = "| PVT-Small | training, 512x512 batch 16 | x1.3 |"
    assert f"{row} - | x1.50 |" in made(now, theirs, older)
    assert f"{row} x0.50 | x1.50 |" in made(now, theirs, {**older, "run": 0})


def test_the_page_says_what_was_changed_after_a_run() -> None:
    now, older = record(OURS, "train", TRAIN_512, ms=20.0), record("mmdet", "train", TRAIN_512, ms=30.0, run=1)
    assert "hanged after" not in made(now, older)
    last = made(now, older, runs=({**NEW, "since": "PVT."}, OLD))
    assert "\n\n**Changed after these measurements**, and not measured: PVT.\n\n" in last
    assert ". Changed after it: PVT.\n" in made(now, older, runs=(NEW, {**OLD, "since": "PVT."}))


def test_large_images_are_compared_with_the_others() -> None:
    case = CASES["large"][1]
    text = made(
        record(OURS, "large", case, ms=80.0, peak_mib=2000.0),
        record("mmdet", "large", case, ms=200.0, peak_mib=9000.0),
        record("transformers", "large", case, failure=measuring.OUT_OF_MEMORY),
    )
    assert "| 4096x4096 batch 1 | ours | 80.00 | 1.00 | 2000 | 1.00 |" in text
    assert "| 4096x4096 batch 1 | mmdet | 200.00 | 2.50 | 9000 | 4.50 |" in text
    assert "| 4096x4096 batch 1 | transformers | fails: out of memory |  |  |  |" in text


def test_figures_of_two_machines_are_shown_and_not_compared() -> None:
    text = made(
        record(OURS, "train", TRAIN_512, ms=20.0),
        record(OURS, "train", TRAIN_512, "kernels", cuda_ms=8.0, kernels=9),
        record("mmdet", "train", TRAIN_512, ms=30.0, peak_mib=1.0, run=1),
        record(BEFORE, "train", TRAIN_512, ms=30.0, run=2),
        record(OURS, "train", TRAIN_800, ms=20.0, run=2),
        record("mmdet", "train", TRAIN_800, ms=30.0, run=2),
        record(OURS, "inference", INFER_800, ms=3.0, graph_ms=2.0, run=1),
        record("mmdet", "inference", INFER_800, ms=3.0, graph_ms=8.0, run=1),
        record(OURS, "compiled", INFER_800, ms=5.0),
        record("mmdet", "compiled", INFER_800, ms=7.0),
        runs=(NEW, {**OLD, "machine": OTHER}, {**OLD, "machine": OTHER}),
    )
    assert "- \\*: from an earlier run, 2026-01-01, of the version of then, on another machine: Another card," in text
    assert "- Only figures of the same machine are compared with each other.\n" in text
    assert "| PVT-Small | training, 512x512 batch 16 | x1.3 | - | not measured | - | - |" in text
    assert "| PVT-Small \\*\\* | training, 800x1344 batch 2 | x1.3 | - | x1.50 | - | mmdet, 30.00 ms |" in text
    assert "| 512x512 batch 16 | mmdet \\* | 30.00 | - | - | - | - | - | 1 | - |" in text
    assert "| 800x1344 batch 2 | mmdet \\*\\* | 30.00 | 1.50 |" in text
    assert (
        "| PVT-Small \\* | inference, 800x1344 batch 1 | x1.3 | - | x1.00: not reached | - | mmdet, 3.00 ms |" in text
    )
    fastest = "compiled or CUDA graph, inference, 800x1344 batch 1"
    assert f"| PVT-Small | {fastest} | x2 | - | x1.40: not reached (compiled) | - | mmdet, compiled, 7.00 ms |" in text


def test_the_fastest_form_of_each_is_compared() -> None:
    text = made(
        record(OURS, "inference", INFER_800, ms=9.0, graph_ms=3.0),
        record(OURS, "compiled", INFER_800, ms=4.0, graph_ms=2.0, compile_cpu_s=50.0),
        record("mmdet", "inference", INFER_800, ms=9.0, graph_failure="fails: RuntimeError: it waits"),
        record("mmdet", "compiled", INFER_800, ms=5.0, graph_ms=6.0),
    )
    what = "compiled or CUDA graph, inference, 800x1344 batch 1"
    assert f"| PVT-Small | {what} | x2 | - | x2.50 (compiled, CUDA graph) | - | mmdet, compiled, 5.00 ms |" in text
    assert "fails: RuntimeError: it waits" in text
    assert "| inference, 800x1344 batch 1 | ours | 4.00 | 1.00 | - | - | 2.00 | 1.00 | - | - | 50 |" in text


def test_compiled_training_is_compared_by_its_kernels_where_a_run_has_them() -> None:
    ours = record(OURS, "compiled", TRAIN_512, ms=10.0, peak_mib=300.0, cuda_ms=4.0, kernels=90, compile_cpu_s=60.0)
    mmdet = record("mmdet", "compiled", TRAIN_512, ms=12.0, peak_mib=600.0, cuda_ms=10.0, kernels=99)
    what = "compiled training, 512x512 batch 16 | x1.15 | - | x1.20"
    text = made(ours, mmdet)
    assert f"| PVT-Small | {what} | x2.50 | mmdet, 12.00 ms |" in text
    assert "| image | implementation | wall | x | CUDA | kernels | graph | x | peak | x | compiling, s |" in text
    assert "| train, 512x512 batch 16 | ours | 10.00 | 1.00 | 4.00 | 90 | - | - | 300 | 1.00 | 60 |" in text
    assert "| train, 512x512 batch 16 | mmdet | 12.00 | 1.20 | 10.00 | 99 | - | - | 600 | 2.00 | - |" in text
    del mmdet["cuda_ms"], mmdet["kernels"]
    text = made(ours, mmdet)
    assert f"| PVT-Small | {what} | - | mmdet, 12.00 ms |" in text
    assert "| train, 512x512 batch 16 | mmdet | 12.00 | 1.20 | - | - | - | - | 600 | 2.00 | - |" in text


def test_page_in_docs_shows_the_figures_in_docs() -> None:
    figures, shown = (ROOT / "docs" / f"benchmarks_gpu.{suffix}" for suffix in ("json", "md"))
    assert figures.is_file() == shown.is_file()
    if figures.is_file():
        assert shown.read_text() == page.page(json.loads(figures.read_text()))


def test_the_worker_can_be_started_from_the_tools_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """``running`` names it by text."""
    assert running.Plan.program == "from benchmarks.gpu.worker import serve; serve()"
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.delitem(sys.modules, "benchmarks", raising=False)
    from importlib.util import find_spec

    assert find_spec("benchmarks.gpu.worker") is not None
