"""Time, kernels and memory of one network on one image."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

TURNS = 5
"""Groups of runs of each that are timed, in turns with the others."""
SECONDS_OF_A_GROUP = 0.08
RUNS_OF_A_GROUP = (2, 10)
"""At least and at most."""
SECONDS_OF_A_LONG_RUN = 0.5
"""What takes longer is timed in one run."""

OUT_OF_MEMORY = "fails: out of memory"

Run = Callable[[], Any]


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def inference(model: nn.Module, image: Tensor) -> Run:
    def run() -> Any:
        with torch.no_grad():
            return model(image)

    return run


def training_step(model: nn.Module, image: Tensor, owner: nn.Module | None = None) -> Run:
    """Forward and backward under bf16 autocast, with fp32 weights.

    Args:
        owner: has the parameters, where ``model`` is its compiled form.
    """
    owner = model if owner is None else owner

    def run() -> None:
        owner.zero_grad(set_to_none=True)
        with torch.autocast(image.device.type, torch.bfloat16):
            loss = sum(level.float().mean() for level in model(image))
        loss.backward()

    return run


class Clock:
    """The wall time of a run in a sequence of runs that nothing waits for, as in a loop of training.

    A host that starts kernels is slower at one moment than at another, by up to a factor of two. So what is compared
    takes turns, and the least time of several groups of runs counts: other work only adds to it.
    """

    def __init__(self, run: Run, device: str) -> None:
        self.run, self.device = run, device
        self.seconds = float("inf")
        """Of a run, the least so far."""
        self.count = 0
        """Runs of a group; none where one run says enough."""

    @property
    def milliseconds(self) -> float:
        return self.seconds * 1e3

    def begin(self) -> None:
        """Runs without a result, except of what takes long, or is a trial on a CPU."""
        synchronize(self.device)
        self._timed(1)  # it may compile something
        took = self._timed(1)
        if took > SECONDS_OF_A_LONG_RUN or self.device == "cpu":
            self.seconds = took
            return
        least, most = RUNS_OF_A_GROUP
        self.count = min(max(int(SECONDS_OF_A_GROUP / took), least), most)

    def turn(self) -> None:
        """Times one group."""
        if self.count:
            self.seconds = min(self.seconds, self._timed(self.count) / self.count)

    def _timed(self, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            self.run()
        synchronize(self.device)
        return time.perf_counter() - start


def milliseconds(run: Run, device: str) -> float:
    """``Clock``'s, of one run by itself."""
    clock = Clock(run, device)
    clock.begin()
    for _ in range(TURNS):
        clock.turn()
    return clock.milliseconds


def peak_mib(run: Run, model: nn.Module, device: str) -> float:
    """What a run allocates at once beyond the weights and the image; the parameters' gradients count."""
    model.zero_grad(set_to_none=True)
    if device == "cpu":
        run()
        return 0.0
    synchronize(device)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    synchronize(device)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def kernels(run: Run, device: str) -> tuple[float, int]:
    """The sum of the kernels' durations in one run, in milliseconds, and how many they are (copies included)."""
    on_cpu = device == "cpu"
    with profile(activities=[ProfilerActivity.CPU if on_cpu else ProfilerActivity.CUDA]) as prof:
        run()
        synchronize(device)
    recorded: Any = prof.profiler
    kind = DeviceType.CPU if on_cpu else DeviceType.CUDA
    found = [e.duration_ns() for e in recorded.kineto_results.events() if e.device_type() == kind]
    return sum(found) / 1e6, len(found)


def capture(run: Run) -> torch.cuda.CUDAGraph:
    """A run as a CUDA graph. The gradients of a training step get places in its memory."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def release(device: str) -> None:
    """Gives the freed memory of the card back, so that another process can have it."""
    if device != "cpu":
        gc.collect()
        torch.cuda.empty_cache()


def reason(error: BaseException) -> str:
    """Why something was not measured, in one line."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return OUT_OF_MEMORY
    lines = str(error).strip().splitlines() or [""]
    text = f"{type(error).__name__}: {lines[0]}" if lines[0] else type(error).__name__
    return f"{'not installed' if isinstance(error, ImportError) else 'fails'}: {text[:160]}"
