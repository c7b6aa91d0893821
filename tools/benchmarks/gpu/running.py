"""Starts the processes that measure, and lets one at a time use the clock.

Processes import, build, compile and warm up side by side. One that is ready to measure asks to be alone; all others,
each a process group, are stopped (SIGSTOP) until it has its figures, so that no other work on the CPU or on the card
disturbs it. A network's process measures all its contenders; an older version of this package has processes of its
own; each compilation has one. What runs out of memory among others is measured again when no other process is left.

Networks of ``planning.FIRST`` come before the others. Of each group what is eager comes first: a few processes of it
prepare ahead, compilations have the other cores, and all of them once nothing eager of the group waits. So a run that
is stopped has whole tables first. Of the cores half count, as two virtual ones are a real one: more processes at once
only make each of them slower.

Where the time goes, seen on one H200 with 16 virtual cores: a network's eager figures take about 20 s alone, so those
of 16 networks about five minutes. Importing and building takes 10 s a process; with 16 processes at once, the first
figure came after 75 s. Compiling a training step took 50 to 120 s of the processor, and with thirteen compilations at
once up to 180 s by the clock. So the nine networks of ``FIRST`` take about three minutes, and eight compilations at
once about five for their 18 training steps; the other seven as long again. Reckoned from these figures, not seen.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from .cases import Task
from .contenders import BEFORE
from .measuring import OUT_OF_MEMORY
from .planning import FIRST, LAST, LEFT_OUT, MISSING_LATER, Known

ROOT = Path(__file__).parents[3]
COMPILE_SECONDS = 300.0
ALONE_SECONDS = 120.0
EAGER = 4
"""Processes that compile nothing, next to those that compile: one measures, and three prepare ahead."""


@dataclass(frozen=True)
class Room:
    """How many processes there may be at a time."""

    processes: int
    eager: int
    """Those that compile nothing."""
    gib: float
    """Of the card's memory, for all of them."""


def room(cores: int, memory_gib: float, compiles: bool = True) -> Room:
    """One process for each two cores, and no more than fit in the card's memory.

    Args:
        cores: virtual ones, of which two are a real one.
        compiles: whether most cores are for compiling.
    """
    if cores < 8:
        return Room(1, 1, memory_gib)
    return Room(cores // 2, EAGER if compiles else cores // 2, memory_gib * 0.9)


@dataclass(frozen=True)
class Plan:
    """How a run measures."""

    device: str
    smoke: bool
    baseline: Path | None
    deadline: float
    """By ``time.monotonic``."""
    room: Room
    compile_seconds: float = COMPILE_SECONDS
    """A process that compiles may use so many seconds of the processor. What needs more is left out."""
    alone_seconds: float = ALONE_SECONDS
    """A process may have the clock to itself so long: another one waits for it, and one that hangs would take all."""
    program: str = "from benchmarks.gpu.worker import serve; serve()"
    """What a process runs, in Python."""


@dataclass
class Job:
    """Tasks for one process."""

    kind: str
    """``eager``, ``before`` (the same of an older version) or ``compiled``."""
    tasks: list[Task]
    stage: int
    """See ``planning``."""
    gib: float
    """Of the card's memory, at most; infinite for what must have the card to itself."""


def jobs(stages: Mapping[Task, int], known: Known, together: bool = False) -> list[Job]:
    """One for each compilation, and for each stage of a network's other tasks, and for those of the older version.

    Args:
        together: all tasks of a kind of a network in one process, whatever their stage: fewer starts of processes.
    """
    alone: list[tuple[int, list[Task]]] = []
    shared: dict[tuple[str, str, int], list[Task]] = {}
    for task, stage in stages.items():
        kind = "compiled" if task.part == "compiled" else "before" if task.contender == BEFORE else "eager"
        if kind == "compiled" and not together:
            alone.append((stage, [task]))
        else:
            shared.setdefault((kind, task.network, 0 if together else stage), []).append(task)
    found = []
    for (kind, _, stage), own in shared.items():  # a contender's training, inference and large images one by one
        names = [*dict.fromkeys(task.contender for task in own)]
        own.sort(key=lambda task, names=names: names.index(task.contender))  # type: ignore[misc]
        found.append(Job(kind, own, stage, known.gib(own)))
    found += [Job("compiled", own, stage, known.gib(own)) for stage, own in alone]

    def place(job: Job) -> tuple[int, ...]:
        # What compiles nothing takes seconds: it comes first, whether it is missing or not.
        is_other = job.tasks[0].network not in FIRST
        return max(job.stage, LAST), is_other, job.kind == "compiled", job.stage

    return sorted(found, key=place)


@dataclass
class Worker:
    job: Job
    process: subprocess.Popen[bytes]
    left: list[Task]
    current: Task | None = None
    ended_for: str = ""
    """Why the runner has ended it, in place of its exit code."""
    buffer: bytes = b""

    def end(self) -> int:
        """Waits for the end of the process and returns its code."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        return self.process.wait()


@dataclass
class Runner:
    """Runs jobs and calls ``keep`` with each record."""

    plan: Plan
    keep: Callable[[dict[str, Any]], None]
    log: Path
    waiting: list[Job] = field(default_factory=list)
    workers: dict[int, Worker] = field(default_factory=dict)
    asking: deque[int] = field(default_factory=deque)
    alone: int | None = None
    alone_since: float = 0.0

    def run(self, waiting: list[Job]) -> bool:
        """Whether all was done before the deadline."""
        self.waiting = [*waiting]
        selector = selectors.DefaultSelector()
        before = signal.signal(signal.SIGTERM, _leave)
        try:
            while self.waiting or self.workers:
                while self.alone is None and (job := self._next()) is not None:
                    self.waiting.remove(job)
                    worker = self._start(job)
                    selector.register(worker.process.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]
                left = self.plan.deadline - time.monotonic()
                if left <= 0:
                    return False
                self._end_late()
                for key, _ in selector.select(min(left, 1.0)):
                    worker = key.data
                    data = os.read(key.fd, 65536)
                    if not data:
                        selector.unregister(key.fileobj)
                        self.waiting += self._ended(worker)
                        continue
                    *lines, worker.buffer = (worker.buffer + data).split(b"\n")
                    for line in lines:
                        self._hear(worker, json.loads(line))
                self._let_one()
            return True
        finally:
            selector.close()
            for worker in self.workers.values():
                _signal(worker.process.pid, signal.SIGKILL)
                worker.end()
            signal.signal(signal.SIGTERM, before)

    def _next(self) -> Job | None:
        """The job that can start: none takes the memory for which one waits whose turn has come."""
        running = [worker.job for worker in self.workers.values()]
        for job in self.waiting:
            if self._has_turn(job, running):
                fits = not running or job.gib + sum(other.gib for other in running) <= self.plan.room.gib
                return job if fits else None
        return None

    def _has_turn(self, job: Job, running: list[Job]) -> bool:
        if len(running) >= self.plan.room.processes:
            return False
        if job.kind != "compiled" and sum(other.kind == job.kind for other in running) >= self._most(job.kind):
            return False
        return job.stage < MISSING_LATER or not any(other.stage < job.stage for other in self.waiting)

    def _most(self, kind: str) -> int:
        return self.plan.room.eager if kind == "eager" else 1

    def _end_late(self) -> None:
        """Ends what takes too long. Its tasks are recorded where the end of the process is noticed."""
        for pid, worker in self.workers.items():
            if worker.job.kind == "compiled" and _cpu_seconds(pid) > self.plan.compile_seconds:
                limit = f"{self.plan.compile_seconds:g} s of the processor"
                self._end(pid, f"{LEFT_OUT}compiling takes more than {limit}")
            elif pid == self.alone and time.monotonic() - self.alone_since > self.plan.alone_seconds:
                self._end(pid, f"fails: it measured for more than {self.plan.alone_seconds:g} s")

    def _end(self, pid: int, why: str) -> None:
        self.workers[pid].ended_for = why
        _signal(pid, signal.SIGKILL)

    def _start(self, job: Job) -> Worker:
        root = self.plan.baseline if job.kind == "before" and self.plan.baseline else ROOT
        paths = [str(root), *(os.path.abspath(p) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", self.plan.program],
                cwd=ROOT / "tools",
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        worker = self.workers[process.pid] = Worker(job, process, [*job.tasks])
        order = {"tasks": [t.to_json() for t in job.tasks], "device": self.plan.device, "smoke": self.plan.smoke}
        self._say(worker, json.dumps(order))
        return worker

    def _say(self, worker: Worker, line: str) -> None:
        assert worker.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, which is noticed where it is read
            worker.process.stdin.write(line.encode() + b"\n")
            worker.process.stdin.flush()

    def _hear(self, worker: Worker, message: Mapping[str, Any]) -> None:
        pid = worker.process.pid
        if "begin" in message:
            worker.current = Task.from_json(message["begin"])
        elif "record" in message:
            worker.left.remove(Task.from_json(message["record"]))
            worker.current = None
            if message["record"].get("failure") == OUT_OF_MEMORY and len(self.workers) > 1:
                self.waiting.append(replace(worker.job, tasks=[Task.from_json(message["record"])], gib=float("inf")))
            else:
                self.keep(message["record"])
        elif "ask" in message:
            self.asking.append(pid)
        elif "done" in message:
            self._resume()

    def _let_one(self) -> None:
        if self.alone is not None or not self.asking:
            return
        self.alone, self.alone_since = self.asking.popleft(), time.monotonic()
        for pid in self.workers:
            if pid != self.alone:
                _signal(pid, signal.SIGSTOP)
        self._say(self.workers[self.alone], "now")

    def _resume(self) -> None:
        self.alone = None
        for pid in self.workers:
            _signal(pid, signal.SIGCONT)

    def _ended(self, worker: Worker) -> list[Job]:
        """What is left to do after a process has ended: nothing, unless it broke down."""
        pid = worker.process.pid
        code = worker.end()
        del self.workers[pid]
        if pid in self.asking:
            self.asking.remove(pid)
        if self.alone == pid:
            self._resume()
        if not worker.left:
            return []
        broken = worker.current or worker.left[0]
        worker.left.remove(broken)
        why = worker.ended_for or f"fails: its process ended with {code}"
        self.keep({**broken.to_json(), "failure": why})
        return [replace(worker.job, tasks=worker.left)] if worker.left else []


def _leave(number: int, frame: object) -> NoReturn:
    """On SIGTERM, as from ``timeout``: the processes, most of which stand still, must not stay."""
    raise SystemExit(128 + number)


def _cpu_seconds(pid: int) -> float:
    """What a process and its children that have ended have used of the processor; 0 where Linux does not say it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return 0.0
    after_name = stat.rpartition(")")[2].split()  # from the third field on; the name may hold anything
    return sum(int(ticks) for ticks in after_name[11:15]) / os.sysconf("SC_CLK_TCK")


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)
