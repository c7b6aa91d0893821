"""Time and memory of the contenders, in turns.

The contenders take turns, so that a busy machine slows all of them equally; a ratio is the median over the turns of
theirs to ours.

Each case has a process of its own: what was allocated and freed before decides whether glibc takes the pages of large
tensors again each time, and so an earlier case can make a later one a third faster.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mm_vitbackbones.measuring import peak_bytes

from .contenders import CONTENDERS


@dataclass(frozen=True)
class Case:
    """What is measured at once: the contenders of one network, in one mode, on one size of image (height, width)."""

    network: str
    mode: str
    size: tuple[int, int]
    batch: int = 1

    def __str__(self) -> str:
        batch = f" batch {self.batch}" if self.batch > 1 else ""
        return f"{self.network} {self.mode} {self.size[0]}x{self.size[1]}{batch}"


@dataclass(frozen=True)
class Setup:
    """How all cases of a run are measured."""

    turns: int = 5
    """Turns of each contender, besides one that warms up."""
    threads: int = 1
    clock: str = "wall"
    """Or ``cpu``, the time of one thread on its CPU, which is steadier on a busy machine."""
    device: str = "cpu"
    dtype: str = "fp32"
    """Or bf16 or fp16: of the weights and of the image."""
    compiled: bool = False
    """By ``torch.compile``, for the very size of the image."""

    def __post_init__(self) -> None:
        if self.clock == "cpu" and (self.threads != 1 or self.device != "cpu"):
            raise ValueError("the clock 'cpu' counts one thread of a CPU: use it with --threads 1")


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RUNS_OF_A_TURN = {"cpu": 1, "cuda": 20}
"""On a GPU a single pass is too short to be timed."""

SIZES = ((224, 224), (512, 512), (800, 1344))
SIZES_OF: dict[str, tuple[tuple[int, int], ...]] = dict.fromkeys(
    ("segformer_b0", "segformer_b0_wide", "segformer_b2", "segformer_head"), ((512, 512),)
)
SIZES_OF |= dict.fromkeys(
    ("deit_s", "dinov3_s", "cait_xxs24", "cait_s24", "xcit_s12_p16", "xcit_s12_p8", "mvit_v2_t"), SIZES[1:]
)
SIZES_OF |= {"dinov2_s": ((518, 518), (798, 1344))}
"""timm's takes only images that patches of 14 pixels fill."""


GPU_SIZES = (((800, 1344), 1), ((800, 1344), 2), ((512, 512), 16))
"""Sizes and batches on a GPU."""


def gpu_cases(networks: Iterable[str], modes: Iterable[str]) -> list[Case]:
    """All that is measured of these networks in these modes on a GPU."""
    return [Case(network, mode, *size) for network in networks for size in GPU_SIZES for mode in modes]


def cases(networks: Iterable[str], modes: Iterable[str]) -> list[Case]:
    """All that is measured of these networks in these modes."""
    return [
        Case(network, mode, size) for network in networks for size in SIZES_OF.get(network, SIZES) for mode in modes
    ]


MODES: dict[str, Callable[[nn.Module, Tensor], Any]] = {}
"""What to measure, by name: a function that runs a model on an image."""


def mode(function: Callable[[nn.Module, Tensor], Any]) -> Callable[[nn.Module, Tensor], Any]:
    MODES[function.__name__.replace("_", "+")] = function
    return function


@mode
def forward(model: nn.Module, image: Tensor) -> Any:
    model.eval()  # mmdet's Swin returns nothing from it
    with torch.no_grad():
        return model(image)


@mode
def forward_backward(model: nn.Module, image: Tensor) -> Any:
    # Zeroed in place, so that the parameters' gradients, which all contenders have, do not count as activations.
    model.train()
    model.zero_grad(set_to_none=False)
    sum(level.mean() for level in model(image)).backward()


@dataclass(frozen=True)
class Row:
    """Measured of one contender in one case."""

    name: str
    milliseconds: float
    ratio: tuple[float, float, float]
    """Its time over ours: the lower quartile, the median and the upper quartile of the turns."""
    peak_mib: float
    peak_ratio: float
    failure: str = ""
    """Why it was not measured; empty if it was."""

    def __str__(self) -> str:
        if self.failure:
            return f"{self.name:<12} {self.failure}"
        low, middle, high = self.ratio
        return (
            f"{self.name:<12} {self.milliseconds:>9.2f} ms  x{middle:.2f} ({low:.2f}-{high:.2f})  "
            f"{self.peak_mib:>6.0f} MiB  x{self.peak_ratio:.2f}"
        )


def machine(setup: Setup) -> str:
    """One line: what the figures depend on."""
    how = f"{setup.dtype}, {'compiled' if setup.compiled else 'eager'}"
    if setup.device != "cpu":
        return f"torch {torch.__version__}, {torch.cuda.get_device_name(setup.device)}, {how}"
    allocator = {name: os.environ.get(name, "unset") for name in ("THP_MEM_ALLOC_ENABLE", "MALLOC_MMAP_THRESHOLD_")}
    settings = ", ".join(f"{name}={value}" for name, value in allocator.items())
    return (
        f"torch {torch.__version__}, {cpu_name()}, {setup.threads} thread(s) on {os.cpu_count()} cores, "
        f"{how}, {torch.backends.cpu.get_cpu_capability()}, {settings}"
    )


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as info:
            return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown CPU"


def measure_apart(case: Case, setup: Setup, settings: Mapping[str, str] | None = None) -> list[Row]:
    """``measure`` in a fresh process, with environment variables of its own."""
    context = multiprocessing.get_context("spawn")
    with (
        environment(settings or {}),
        ProcessPoolExecutor(1, mp_context=context, initializer=_start, initargs=(setup.threads,)) as pool,
    ):
        return pool.submit(measure, case, setup).result()


def _start(threads: int) -> None:
    torch.set_num_threads(threads)
    # The allocator then refuses more memory than the machine has, before the system kills the process.
    available = int(0.9 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    resource.setrlimit(resource.RLIMIT_DATA, (available, available))


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Within it, the environment has these variables."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def measure(case: Case, setup: Setup) -> list[Row]:
    """Measure all contenders whose packages are installed, ours first."""
    placed: dict[str, Any] = dict(device=torch.device(setup.device), dtype=DTYPES[setup.dtype])
    image = torch.randn(case.batch, 3, *case.size).to(**placed)
    run = MODES[case.mode]
    models: dict[str, Any] = {}
    failures: dict[str, str] = {}
    for contender in CONTENDERS[case.network]:
        try:
            network = contender.build().to(**placed)
            model: Any = torch.compile(network, dynamic=False) if setup.compiled else network
            run(model, image)
            models[contender.name] = model
        except ImportError as error:
            failures[contender.name] = f"not installed ({error})"
        except (RuntimeError, AssertionError, MemoryError) as error:
            if contender.name == "ours":
                raise
            full = "can't allocate memory" in str(error) or isinstance(error, (MemoryError, torch.OutOfMemoryError))
            failures[contender.name] = f"fails: {'out of memory' if full else str(error).strip().splitlines()[0]}"
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(setup.turns):
        for name, model in models.items():
            times[name].append(_seconds(partial(run, model, image), setup))
    peaks = {name: _peak(partial(run, model, image), setup.device) for name, model in models.items()}
    rows = [_row(name, times[name], times["ours"], peaks[name], peaks["ours"]) for name in models]
    return rows + [Row(name, 0.0, (0.0, 0.0, 0.0), 0.0, 0.0, failure) for name, failure in failures.items()]


def _seconds(run: Callable[[], Any], setup: Setup) -> float:
    now = time.thread_time if setup.clock == "cpu" else time.perf_counter
    wait = torch.cuda.synchronize if setup.device != "cpu" else lambda: None
    count = RUNS_OF_A_TURN[torch.device(setup.device).type]
    wait()
    start = now()
    for _ in range(count):
        run()
    wait()
    return (now() - start) / count


def _peak(run: Callable[[], Any], device: str) -> int:
    """Bytes that a run holds at once beyond what was allocated before."""
    if device == "cpu":
        return peak_bytes(run)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device) - before


def _row(name: str, times: list[float], ours: list[float], peak: int, our_peak: int) -> Row:
    ratios = sorted(theirs / own for theirs, own in zip(times, ours, strict=True))
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    middle = statistics.median(ratios)
    return Row(name, statistics.median(times) * 1e3, (low, middle, high), peak / 2**20, peak / our_peak)
