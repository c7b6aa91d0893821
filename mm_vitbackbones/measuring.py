"""Counts what a network does and holds: allocated bytes, dispatched operators, copies of maps.

Counts are equal from run to run, so tests can check them. Times are not measured here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
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
    off, and takes each operator without a formula apart.

    PyTorch works out in Python what many operators give on the meta device. As the blocks of a network are alike, an
    operator runs there once for each kind of arguments. Its results are then made of their shapes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self._formulas = FlopCounterMode(display=False).flop_registry
        self._known: dict[Hashable, tuple[Any, int]] = {}
        """The kind of the results, and the operations, by operator and kind of arguments."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # A view shares memory, and what changes an argument gives it back.
        key = None if func.is_view or func._schema.is_mutable else (func, _kind(args), _kind(kwargs))
        if key in self._known:
            kind, operations = self._known[key]
            self.operations += operations
            return kind.made() if isinstance(kind, _Meta) else tuple(each.made() for each in kind)
        result = func(*args, **kwargs)
        formula = self._formulas.get(func.overloadpacket)
        operations = 0 if formula is None else int(formula(*args, **kwargs, out_val=result))
        self.operations += operations
        kind = _kind(result)
        if key is not None and all(isinstance(each, _Meta) for each in (kind if isinstance(kind, tuple) else [kind])):
            self._known[key] = kind, operations
        return result


@dataclass(frozen=True)
class _Meta:
    """A tensor of the meta device, up to its identity."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def made(self) -> Tensor:
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device="meta")


def _kind(value: Any) -> Any:
    """What a result on the meta device depends on. Of two equal numbers, the types count, too. Tensors of other devices
    are like nothing else."""
    if isinstance(value, Tensor):
        return _Meta(tuple(value.shape), value.stride(), value.dtype) if value.is_meta else object()
    if isinstance(value, (list, tuple)):
        return tuple(map(_kind, value))
    if isinstance(value, Mapping):
        return tuple((name, _kind(each)) for name, each in value.items())
    return type(value), value


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
