from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, TypeVar
from weakref import ref

import torch
from torch import Tensor
from torch.utils import checkpoint as checkpointing
from torch.utils.checkpoint import checkpoint

from mm_vitbackbones.ops.context import autocast_dtype, autocast_to, is_compiling

T = TypeVar("T")

ATTENTION_KERNELS = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
"""What ``F.scaled_dot_product_attention`` comes down to, by device and shapes."""


def recompute(function: Callable[..., T], *inputs: Any, random: bool = False) -> T:
    """``function(*inputs)``, of which only the inputs are kept for the backward pass, where the rest is computed again.

    The second computation stops at the last tensor that the backward pass needs. So where ``function`` ends in a
    linear map, that map is not computed twice. ``random``: whether ``function`` draws random numbers.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=random)


def chain(x: Tensor, *functions: Callable[[Any], Any]) -> Any:
    """``functions[-1](... functions[0](x))``."""
    for function in functions:
        x = function(x)
    return x


def recompute_between(x: Tensor, *functions: Callable[[Any], Any]) -> Any:
    """``chain``, except that the results of all functions but the last are computed again in the backward pass instead
    of kept. For norms and activations before a linear map this always pays.

    The functions but the last give one tensor each, and draw no random numbers. Under autocast these tensors are of
    its narrower type.

    Compiled graphs are left as they are: the compiler makes this choice by itself. So is what is computed again as a
    part of something larger by ``recompute_but_attention``: it would be computed three times.
    """
    if not torch.is_grad_enabled() or is_compiling() or getattr(_larger, "running", False):
        return chain(x, *functions)
    if _inside_hooks():
        return recompute(chain, x, *functions)
    results = _Results(x, functions[:-1])
    with torch.autograd.graph.saved_tensors_hooks(results.pack, results.unpack):
        return functions[-1](results.run(x))


def _inside_hooks() -> bool:
    """Whether somebody else decides what is kept for the backward pass, such as a checkpoint of something larger. What
    is packed here would escape them, but for a checkpoint inside theirs. (Where PyTorch cannot tell: true.)"""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is None or top(True) is not None


class _Part(NamedTuple):
    """A view of one of the results, which autograd meant to keep."""

    which: int
    shape: torch.Size
    strides: tuple[int, ...]
    offset: int


class _Results:
    """The results of a chain of functions, of which autograd keeps the input. When the first of them is asked for,
    all are computed again, and each is dropped when it has been asked for as often as it was to be kept.

    ``torch.utils.checkpoint`` does the same for any function, and takes a fifth of a millisecond each time, which in
    small maps is more than the computation.
    """

    def __init__(self, x: Tensor, functions: Sequence[Callable[[Any], Any]]) -> None:
        self.x = x.detach()
        self.functions = functions
        self.narrow = autocast_dtype(x.device)
        self.results: list[ref[Tensor]] = []
        self.wanted: Counter[int] = Counter()
        self.left: Counter[int] = Counter()
        self.again: dict[int, Tensor] = {}

    def run(self, x: Tensor) -> Tensor:
        for result in self._each(x):
            self.results.append(ref(result))
        return result

    def _each(self, x: Tensor) -> Iterator[Tensor]:
        for function in self.functions:
            x = function(x)
            if self.narrow is not None:
                # Else autograd would keep the copy that autocast makes of a result, of which nothing is known here.
                x = x.to(self.narrow)
            yield x

    def pack(self, tensor: Tensor) -> Tensor | _Part:
        for index, result in enumerate(self.results):
            alive = result()  # what is not alive has no part in what runs now, and others may have its memory
            if alive is not None and alive.untyped_storage()._cdata == tensor.untyped_storage()._cdata:
                self.wanted[index] += 1
                return _Part(index, tensor.shape, tensor.stride(), int(tensor.storage_offset()))
        # An operator may keep its own result. With what knows the operator as its origin, it would hold itself for
        # ever (PyTorch puts the origin back when it unpacks).
        return tensor if tensor.grad_fn is None else tensor.data

    def unpack(self, kept: Tensor | _Part) -> Tensor:
        if not isinstance(kept, _Part):
            return kept
        if kept.which not in self.again:
            self._run_again()
        result = self.again[kept.which].as_strided(kept.shape, kept.strides, kept.offset)
        self.left[kept.which] -= 1
        if not self.left[kept.which]:
            del self.again[kept.which]
        return result

    def _run_again(self) -> None:
        self.left = self.wanted.copy()
        with torch.no_grad(), autocast_to(self.x.device, self.narrow):
            self.again = {index: result for index, result in enumerate(self._each(self.x)) if self.left[index]}


def recompute_but_attention(function: Callable[..., T], *inputs: Any, random: bool = False) -> T:
    """``recompute``, except that the results of PyTorch's attention kernels are kept beside the inputs where there are
    more keys than channels: there they are dearer to compute again than linear maps, and no larger than the inputs.

    PyTorch before 2.4 cannot tell them apart, and computes them again, too.
    """
    make_contexts = attention_kept()
    if make_contexts is None or not torch.is_grad_enabled():
        return recompute(function, *inputs, random=random)

    def run(*inputs: Any) -> T:
        _larger.running = True
        try:
            return function(*inputs)
        finally:
            _larger.running = False

    return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=random, context_fn=make_contexts)


_larger = threading.local()
"""``running``: whether this thread (the backward pass has threads of its own) is inside ``recompute_but_attention``."""


@cache
def attention_kept() -> Callable[[], Any] | None:
    """Makes the contexts in which a function is checkpointed but for its dear attention kernels; None where PyTorch
    has no such thing."""
    make = getattr(checkpointing, "create_selective_checkpoint_contexts", None)
    if make is None:
        return None
    policy = checkpointing.CheckpointPolicy
    kernels = {getattr(torch.ops.aten, name).default for name in ATTENTION_KERNELS if hasattr(torch.ops.aten, name)}

    def choose(_: Any, operator: Any, *args: Any, **kwargs: Any) -> Any:
        if operator not in kernels:
            return policy.PREFER_RECOMPUTE
        _, heads, keys, width = args[1].shape
        return policy.MUST_SAVE if keys > heads * width else policy.PREFER_RECOMPUTE

    return partial(make, choose)
