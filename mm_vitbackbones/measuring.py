"""Counts what a network does and holds: allocated bytes, dispatched operators, copies of maps.

Counts are equal from run to run, so tests can check them. Times are not measured here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

COPIES = ("aten::copy_", "aten::clone", "aten::contiguous", "aten::_to_copy", "aten::roll", "aten::cat")


def peak_bytes(run: Callable[[], Any]) -> int:
    """Peak of what ``run`` holds at once beyond what was allocated before, in bytes, on the CPU.

    Counts every request to PyTorch's CPU allocator, those inside operators included.
    """
    live = peak = 0
    for change in _memory_events(run):
        live += change
        peak = max(peak, live)
    return peak


def held_bytes(run: Callable[[], Any]) -> int:
    """Bytes still allocated on the CPU when ``run`` has returned and its result is alive."""
    return sum(_memory_events(run))


def _memory_events(run: Callable[[], Any]) -> list[int]:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        result = run()
    recorded: Any = prof.profiler
    events = [e for e in recorded.kineto_results.events() if e.name() == "[memory]" and e.device_type().value == 0]
    del result
    return [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]


def copies(run: Callable[[], Any], at_least: int, ignore: Collection[tuple[int, ...]] = frozenset()) -> Counter[str]:
    """How often ``run`` copied a tensor of ``at_least`` elements, by operator; copies inside operators count too.

    Args:
        ignore: shapes that are not counted, such as those of weights.
    """
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as prof:
        run()
    counts: Counter[str] = Counter()
    for event in prof.events() or []:
        shapes = [shape for shape in event.input_shapes if shape and not isinstance(shape[0], list)]
        sizes = [math.prod(shape) for shape in shapes if tuple(shape) not in ignore]
        # `contiguous` of a tensor that is contiguous returns it: only the copy under it costs.
        if event.name in COPIES and event.name != "aten::contiguous" and max(sizes, default=0) >= at_least:
            counts[event.name] += 1
    return counts


def multiply_adds(run: Callable[[], Any]) -> int:
    """The multiply-adds of convolutions, matrix products and attention in ``run``, also on the meta device."""
    with _Counter() as counter:
        run()
    return counter.operations // 2


class _Counter(TorchDispatchMode):
    """Adds up PyTorch's formulas of operators. Its own counter puts hooks on all modules, which switch the fast forms
    off, and takes each operator without a formula apart."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self._formulas = FlopCounterMode(display=False).flop_registry

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (formula := self._formulas.get(func.overloadpacket)) is not None:
            self.operations += int(formula(*args, **(kwargs or {}), out_val=result))
        return result


class OperatorCount(TorchDispatchMode):
    """Counts dispatched operators except views: ``with OperatorCount() as count: ...; count.total``."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.by_name.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.by_name[str(func.overloadpacket)] += 1
        return func(*args, **(kwargs or {}))
