"""Starts the processes that measure, and lets one at a time use the clock.

Processes import, build, compile and warm up side by side. One that is ready to measure asks to be alone; all others,
each a process group, are stopped (SIGSTOP) until it has its figures, so that no other work on the CPU or on the card
disturbs it. A network's process measures all its contenders; an older version of this package has processes of its
own; each compilation has one.

Where the time goes on one H200 with 16 cores: importing and building 10 s a process, hidden behind others; alone,
0.8 s for each training case, 0.4 s for inference with its graph, 0.2 s for kernels, 2 s for large images: about two and
a half minutes in all. Compiling takes 40 to 70 s of one core for inference and 60 to 120 s for training, twelve at a
time: about four minutes, beside the rest.
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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .cases import Task
from .contenders import BEFORE

ROOT = Path(__file__).parents[3]
GIB_OF_A_TRAINING = 12
"""Memory that a process takes which compiles training, at most."""
GIB_OF_AN_EAGER_TRAINING = 20
"""The same of one that does not compile: with the caches of the network before it."""


@dataclass(frozen=True)
class Plan:
    """How a run measures."""

    device: str
    smoke: bool
    baseline: Path | None
    deadline: float
    """By ``time.monotonic``."""
    limits: Mapping[str, int]
    """Processes at a time, by kind of job."""
    program: str = "from benchmarks.gpu.worker import serve; serve()"
    """What a process runs, in Python."""


def limits(cores: int, memory_gib: float, compiles: bool = True) -> dict[str, int]:
    """Processes at a time: together no more than the cores, and no more trainings than fit in the card's memory.

    Args:
        compiles: whether most cores are for compiling.
    """
    if cores < 8:
        return {"eager": 1, "before": 1, "compiled inference": 1, "compiled train": 1}
    compiling = cores - 4
    trainings = max(1, min(compiling // 2, int(memory_gib * 0.8 / GIB_OF_A_TRAINING)))
    eager = 3 if compiles else max(1, min(cores // 2, int(memory_gib * 0.8 / GIB_OF_AN_EAGER_TRAINING)))
    return {"eager": eager, "before": 1, "compiled inference": compiling - trainings, "compiled train": trainings}


@dataclass
class Job:
    """Tasks for one process."""

    kind: str
    tasks: list[Task]


def jobs(tasks: Iterable[Task]) -> list[Job]:
    """One for each compilation, then one for each network's other tasks, and for those of the older version."""
    alone: list[Job] = []
    shared: dict[tuple[str, str], Job] = {}
    for task in tasks:
        if task.part == "compiled":
            alone.append(Job(f"compiled {task.case.mode}", [task]))
        else:
            kind = "before" if task.contender == BEFORE else "eager"
            shared.setdefault((kind, task.network), Job(kind, [])).tasks.append(task)
    for job in shared.values():  # a contender's training, inference and large images one after the other
        names = [*dict.fromkeys(task.contender for task in job.tasks)]
        job.tasks.sort(key=lambda task: names.index(task.contender))
    return [*alone, *shared.values()]


@dataclass
class Worker:
    job: Job
    process: subprocess.Popen[bytes]
    left: list[Task]
    current: Task | None = None
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
    workers: dict[int, Worker] = field(default_factory=dict)
    asking: deque[int] = field(default_factory=deque)
    alone: int | None = None

    def run(self, waiting: list[Job]) -> bool:
        """Whether all was done before the deadline."""
        waiting = [*waiting]
        selector = selectors.DefaultSelector()
        try:
            while waiting or self.workers:
                for job in [job for job in waiting if self._fits(job)]:
                    if self._fits(job) and self.alone is None:
                        waiting.remove(job)
                        worker = self._start(job)
                        selector.register(worker.process.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]
                left = self.plan.deadline - time.monotonic()
                if left <= 0:
                    return False
                for key, _ in selector.select(min(left, 1.0)):
                    worker = key.data
                    data = os.read(key.fd, 65536)
                    if not data:
                        selector.unregister(key.fileobj)
                        waiting += self._ended(worker)
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

    def _fits(self, job: Job) -> bool:
        return sum(worker.job.kind == job.kind for worker in self.workers.values()) < self.plan.limits[job.kind]

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
            self.keep(message["record"])
        elif "ask" in message:
            self.asking.append(pid)
        elif "done" in message:
            self._resume()

    def _let_one(self) -> None:
        if self.alone is not None or not self.asking:
            return
        self.alone = self.asking.popleft()
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
        self.keep({**broken.to_json(), "failure": f"fails: its process ended with {code}"})
        return [Job(worker.job.kind, worker.left)] if worker.left else []


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)
