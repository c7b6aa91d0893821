"""What a step of training keeps, and the most that it holds at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


def kept_bytes(network: nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes of what autograd keeps of a forward pass, each storage once, without parameters."""
    known = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(kept.values())


class Live(TorchDispatchMode):
    """Counts the bytes of the memory that operators have given while it is held: ``now``, and ``peak``, the most.

    Operators allocate their results and compute nothing: the sizes of a card's benchmark take a second, and hardly any
    memory. So values are without meaning, except those of indices and of small constants, which our code may keep.

    What an operator allocates and frees by itself does not count. So a kernel's reference, which is one operator,
    counts as the kernel does, and fused attention has no scores.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.without_values: set[int] = set()
        """The storages of tensors that were not computed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.is_view or func.overloadpacket.__name__ in ALIASES:
            return func(*args, **kwargs)
        shapes = _Shapes()
        computed, given = self.is_computed(func, args, kwargs), tree_leaves((args, kwargs))
        if computed:
            out = func(*args, **kwargs)
        else:
            positional, named = tree_map_only(Tensor, shapes.of, (args, kwargs))
            out = func(*positional, **(named | {"device": "meta"} if "device" in named else named))
            out = tree_map_only(Tensor, shapes.filled, out)
        for tensor in tree_leaves(out):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if not computed:
                self.without_values.add(storage._cdata)
            if not any(tensor is x for x in given):  # which the operator has written to
                self.add(storage.nbytes())
                weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        return out

    def free(self, storage: int, size: int) -> None:
        self.now -= size
        self.without_values.discard(storage)

    def add(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)

    def is_computed(self, func: Any, args: Any, kwargs: Any) -> bool:
        """Whether an operator gives values: indices and the like, on which shapes depend, and what few values give."""
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        floats = [x for x in tensors if x.is_floating_point()]
        known = all(x.untyped_storage()._cdata not in self.without_values for x in floats)
        if known and sum(x.numel() for x in floats) <= FEW:
            return True
        if torch.Tag.dynamic_output_shape in func.tags:  # an index may be a mask
            return not all(x.is_floating_point() or x.dtype == torch.long for x in tensors)
        return torch.Tag.data_dependent_output in func.tags


FEW = 2**16
"""Values of an operator's arguments."""
ALIASES = ("_unsafe_view", "unsafe_split", "unsafe_split_with_sizes", "lift_fresh")
"""Operators whose results are views, besides those that say so."""


class _Shapes:
    """The tensors that one operator is given, and others that have their shapes and no memory."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def of(self, x: Tensor) -> Tensor:
        shape = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
        self.pairs.append((x, shape))
        return shape

    def filled(self, shape: Tensor) -> Tensor:
        """A result with memory: what was given, if the operator has written to it."""
        for x, known in self.pairs:
            if known is shape:
                return x
        return torch.empty_strided(shape.shape, shape.stride(), dtype=shape.dtype)


def peak_bytes(step: Callable[[], Any]) -> int:
    """The most bytes that a step holds at once, of what it has allocated itself."""
    with Live() as live:
        step()
    return live.peak
