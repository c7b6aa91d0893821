"""A process that measures a list of tasks of one network and reports each result in a line of JSON.

It talks with the process that started it (see ``running``): it reads one line with its tasks, and writes lines that
hold ``begin`` (a task), ``record`` (a result), ``ask`` and ``done`` (it wants to be, and was, alone). An answer to
``ask`` is one line. Whatever libraries print goes to the log.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from . import measuring
from .cases import SMOKE_SIZE, TRAIN_512, Task
from .contenders import find, prepare_imports
from .lifetime import end_with_parent


class Parent:
    """The way to the process that started this one."""

    def __init__(self) -> None:
        self._lines = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def read(self) -> Any:
        return json.loads(sys.stdin.readline())

    def write(self, **message: Any) -> None:
        self._lines.write(json.dumps(message) + "\n")

    def record(self, task: Task, **values: Any) -> None:
        self.write(record={**task.to_json(), **values})

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within it, the processes beside this one stand still."""
        self.write(ask=True)
        if not sys.stdin.readline():
            raise SystemExit(1)  # nobody is there any more
        try:
            yield
        finally:
            self.write(done=True)


def serve() -> None:
    end_with_parent()
    parent = Parent()
    order = parent.read()
    tasks = [Task.from_json(each) for each in order["tasks"]]
    if ":" in order["device"]:
        torch.cuda.set_device(order["device"])
    torch.manual_seed(0)
    prepare_imports()
    measure = compiled if tasks[0].part == "compiled" else eager
    measure(tasks, order, parent)


def image_of(task: Task, order: Mapping[str, Any]) -> Tensor:
    size, batch = (SMOKE_SIZE, 1) if order["smoke"] else (task.case.size, task.case.batch)
    image = torch.randn(batch, 3, *size, device=order["device"])
    return image if task.case.mode == "train" else image.bfloat16()


def run_of(task: Task, model: nn.Module, image: Tensor) -> measuring.Run:
    """The model, in the mode and the type of weights of a task."""
    model.train(task.case.mode == "train")  # mmdet's Swin returns nothing from it
    if task.case.mode == "train":
        return measuring.training_step(model.float(), image)
    return measuring.inference(model.bfloat16(), image)


class Models:
    """The networks of a process, by contender."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._built: dict[str, nn.Module] = {}
        self._errors: dict[str, Exception] = {}

    def of(self, task: Task) -> nn.Module:
        """It is built once. If that fails, each later call raises the same error."""
        name = task.contender
        if name in self._errors:
            raise self._errors[name]
        if name not in self._built:
            try:
                self._built[name] = find(task.network, name).build().to(self._device)
            except Exception as error:
                self._errors[name] = error.with_traceback(None)  # whose frames hold memory
                raise
        return self._built[name]


class Attempts:
    """Tasks that take the same steps. One that fails is recorded with the reason, and takes no further step."""

    def __init__(self, tasks: list[Task], parent: Parent) -> None:
        self._left, self._parent = [*tasks], parent

    def each(self, step: Callable[[Task], object]) -> None:
        for task in [*self._left]:
            self._parent.write(begin=task.to_json())
            try:
                step(task)
            except Exception as error:
                self._left.remove(task)
                self._parent.record(task, failure=measuring.reason(error))


def eager(tasks: list[Task], order: Mapping[str, Any], parent: Parent) -> None:
    """All times first and the kernels after them: a profiler, once it has run, may slow down what follows."""
    models = Models(order["device"])
    timed = [task for task in tasks if task.what == "time"]
    for case in dict.fromkeys((task.part, task.case) for task in timed):
        _time([task for task in timed if (task.part, task.case) == case], models, order, parent)
    _profile([task for task in tasks if task.what == "kernels"], models, order, parent)


def _time(tasks: list[Task], models: Models, order: Mapping[str, Any], parent: Parent) -> None:
    """The times of one case, whose contenders take turns while no other process runs."""
    clocks: dict[Task, measuring.Clock] = {}
    values: dict[Task, dict[str, Any]] = {}
    device, attempts = order["device"], Attempts(tasks, parent)

    def prepare(task: Task) -> None:
        clock = clocks[task] = measuring.Clock(run_of(task, models.of(task), image_of(task, order)), device)
        if task.part != "large" and not order["smoke"]:  # large images would be in the way of other processes
            clock.run()

    def finish(task: Task) -> None:
        peak = measuring.peak_mib(clocks[task].run, models.of(task), device)
        values[task] = {"ms": clocks[task].milliseconds, "peak_mib": peak}

    attempts.each(prepare)
    with parent.alone():
        attempts.each(lambda task: clocks[task].begin())
        for _ in range(measuring.TURNS):
            attempts.each(lambda task: clocks[task].turn())
        attempts.each(finish)
    if has_graph(tasks[0], device):
        attempts.each(lambda task: values[task].update(_graph(clocks[task].run, device, parent)))
    attempts.each(lambda task: parent.record(task, **values[task]))
    for task in clocks:
        models.of(task).zero_grad(set_to_none=True)
    clocks.clear()
    measuring.release(device)


def _profile(tasks: list[Task], models: Models, order: Mapping[str, Any], parent: Parent) -> None:
    device = order["device"]

    def step(task: Task) -> None:
        model = models.of(task)
        try:
            run = run_of(task, model, image_of(task, order))
            if not order["smoke"]:
                run()
            parent.record(task, **_kernels(run, device, parent))
        finally:
            model.zero_grad(set_to_none=True)
            measuring.release(device)

    Attempts(tasks, parent).each(step)


def _kernels(run: measuring.Run, device: str, parent: Parent) -> dict[str, Any]:
    _start_profiler(device)
    with parent.alone():
        cuda_ms, count = measuring.kernels(run, device)
    return {"cuda_ms": cuda_ms, "kernels": count}


@functools.cache
def _start_profiler(device: str) -> None:
    """Its first use in a process takes longer."""
    measuring.kernels(lambda: torch.zeros(1, device=device) + 1, device)


def has_graph(task: Task, device: str) -> bool:
    """Inference, and of training the case whose time is also compared with that of its kernels."""
    if device == "cpu" or task.part == "large":
        return False
    return task.case.mode != "train" or (task.part, task.case) == ("train", TRAIN_512)


def _graph(run: measuring.Run, device: str, parent: Parent) -> dict[str, Any]:
    measuring.release(device)  # a graph has memory of its own
    try:
        graph = measuring.capture(run)
        with parent.alone():
            return {"graph_ms": measuring.milliseconds(graph.replay, device)}
    except Exception as error:  # a peer that waits for the GPU cannot be captured
        return {"graph_failure": measuring.reason(error)}


def compiled(tasks: list[Task], order: Mapping[str, Any], parent: Parent) -> None:
    """One task a process, except in a trial: what was compiled before would change the next one's seconds.

    Its kernels are in the record of its times: they are not worth compiling it again.
    """
    # Some have graphs of their own for each block, and would be compiled up to the eighth only.
    torch._dynamo.config.recompile_limit = RECOMPILATIONS
    for task in tasks:
        parent.write(begin=task.to_json())
        try:
            parent.record(task, **_compiled(task, order, parent))
        except Exception as error:
            parent.record(task, failure=measuring.reason(error))
        torch.compiler.reset()


RECOMPILATIONS = 64
"""Of one function, at most."""
TRIAL_COMPILER = "eager"
"""Traces the graph, which is what may fail, and runs it as it is."""


def _compiled(task: Task, order: Mapping[str, Any], parent: Parent) -> dict[str, Any]:
    device = order["device"]
    owner = find(task.network, task.contender).build().to(device)
    image = image_of(task, order)
    training = task.case.mode == "train"
    plain = run_of(task, owner, image)
    # Some build here what they need for a size of image. A whole step of training would fill the card, of which
    # several processes compile at once.
    reference = measuring.inference(owner, image[:1])() if training else plain()
    start, used = time.perf_counter(), _cpu_seconds()
    network: Any = torch.compile(owner, dynamic=False, backend=TRIAL_COMPILER if order["smoke"] else "inductor")
    run = measuring.training_step(network, image, owner) if training else measuring.inference(network, image)
    result = run()
    measuring.synchronize(device)
    spent = {"compile_s": time.perf_counter() - start, "compile_cpu_s": _cpu_seconds() - used}
    if not training:
        spent["difference"] = _difference(result, reference)
    del reference, result
    owner.zero_grad(set_to_none=True)
    measuring.release(device)
    with parent.alone():
        spent["ms"] = measuring.milliseconds(run, device)
        spent["peak_mib"] = measuring.peak_mib(run, owner, device)
    if has_graph(task, device):
        spent |= _graph(run, device, parent)
    try:
        return {**spent, **_kernels(run, device, parent)}
    except Exception as error:  # the times took minutes of compiling
        return {**spent, "kernels_failure": measuring.reason(error)}


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _difference(result: Any, reference: Any) -> float:
    pairs = zip(result, reference, strict=True)
    return max(float((a.float() - b.float()).norm() / b.float().norm()) for a, b in pairs)
