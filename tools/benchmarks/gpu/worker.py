"""A process that measures a list of tasks of one network and reports each result in a line of JSON.

It talks with the process that started it (see ``running``): it reads one line with its tasks, and writes lines that
hold ``begin`` (a task), ``record`` (a result), ``ask`` and ``done`` (it wants to be, and was, alone). An answer to
``ask`` is one line. Whatever libraries print goes to the log.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from . import measuring
from .cases import SMOKE_SIZE, Task
from .contenders import find, prepare_imports


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


def eager(tasks: list[Task], order: Mapping[str, Any], parent: Parent) -> None:
    """All times first and the kernels after them: a profiler, once it has run, may slow down what follows."""
    device = order["device"]
    models: dict[str, nn.Module] = {}
    failures: dict[str, str] = {}
    timed = [task for task in tasks if task.what == "time"]
    profiled = [task for task in tasks if task.what == "kernels"]
    is_ready = False
    for task in (*timed, *profiled):
        parent.write(begin=task.to_json())
        name = task.contender
        run: Any = None
        image: Any = None
        model: Any = None
        try:
            if name in failures:
                raise RuntimeError(failures[name])
            if name not in models:
                models[name] = find(task.network, name).build().to(device)
            model, image = models[name], image_of(task, order)
            run = run_of(task, model, image)
            if task.part == "large":  # its kernels would be in the way of another one's
                with parent.alone():
                    run()
                    measuring.synchronize(device)
            elif not order["smoke"]:
                run()
            if task.what == "kernels":
                if not is_ready:
                    measuring.kernels(lambda: torch.zeros(1, device=device) + 1, device)
                    is_ready = True
                with parent.alone():
                    cuda_ms, count = measuring.kernels(run, device)
                parent.record(task, cuda_ms=cuda_ms, kernels=count)
            else:
                parent.record(task, **_times(task, run, model, device, parent))
        except Exception as error:
            if name not in models:  # so is what else is asked of it
                failures.setdefault(name, measuring.reason(error))
            parent.record(task, failure=failures.get(name) or measuring.reason(error))
        if model is not None:
            model.zero_grad(set_to_none=True)
        del run, image, model
        measuring.release(device)


def _times(task: Task, run: measuring.Run, model: nn.Module, device: str, parent: Parent) -> dict[str, Any]:
    if task.case.mode == "train" or device == "cpu" or task.part == "large":
        with parent.alone():
            return {"ms": measuring.milliseconds(run, device), "peak_mib": measuring.peak_mib(run, model, device)}
    with parent.alone():
        values = {"ms": measuring.milliseconds(run, device), "peak_mib": measuring.peak_mib(run, model, device)}
    return {**values, **_graph(run, device, parent)}


def _graph(run: measuring.Run, device: str, parent: Parent) -> dict[str, Any]:
    try:
        graph = measuring.capture(run)
        with parent.alone():
            return {"graph_ms": measuring.milliseconds(graph.replay, device)}
    except Exception as error:  # a peer that waits for the GPU cannot be captured
        return {"graph_failure": measuring.reason(error)}


def compiled(tasks: list[Task], order: Mapping[str, Any], parent: Parent) -> None:
    """One task a process, except in a trial: what was compiled before would change the next one's seconds."""
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
    return {**spent, **_times(task, run, owner, device, parent)}


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _difference(result: Any, reference: Any) -> float:
    pairs = zip(result, reference, strict=True)
    return max(float((a.float() - b.float()).norm() / b.float().norm()) for a, b in pairs)
