"""What autograd keeps for the backward pass, and what is computed again there instead.

There are three ways:

- ``saving`` and ``cheap``. Norms and activations before a linear map are nearly free to compute again. They are marked
  where they are called, ``cheap(norm, x)``, and inside ``saving()`` autograd keeps a recipe in place of their results.
- ``made`` and ``sources_of``. On CUDA, where such recipes cost more than they save, the result of a norm is marked with
  what it was made of, and the functions of linear maps keep that instead: always in a feed-forward network, and in
  other maps where ``saving`` says that the least is to be kept.
- ``recomputed``. A whole function, or all of it except attention, is computed again, by PyTorch's checkpoints.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import checkpoint as checkpointing
from torch.utils.checkpoint import checkpoint

from mm_vitbackbones.ops import context, snapshot
from mm_vitbackbones.ops.kernels import registration

T = TypeVar("T")

NOTHING, ALL_BUT_ATTENTION, ALL = "nothing", "all_but_attention", "all"
"""What ``recomputed`` computes again."""

ALL_RESULTS, USUAL, LEAST = range(3)
"""How little functions for CUDA keep. What is computed again as a part of something larger keeps all results, for a
short time. Otherwise feed-forward networks do without the results of norms, and with the last one all linear maps."""

ATTENTION_KERNELS = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
"""The operators that ``F.scaled_dot_product_attention`` calls, by device and shapes."""
OWN_ATTENTION = (f"{registration.NAMESPACE}::mixed_heads",)
"""Operators of ours, whose first argument holds queries, keys and values (B, N, 3C)."""


class _Local(threading.local):
    """The state of one thread; the backward pass has threads of its own."""

    recipes: _Recipes | None = None
    """Of the innermost ``saving``."""
    inside_larger = False
    """Whether what runs now will be computed again, as a part of something larger."""
    again = False
    """Whether what runs now is computed again, in the backward pass."""
    policy = USUAL
    """How little functions for CUDA keep."""


state = _Local()
"""Read as it is, as a call would take longer: in a step on a GPU it is read hundreds of times."""


# ---- cheap results


def saving(x: Tensor | None = None, what: str = NOTHING) -> AbstractContextManager[Any]:
    """Within it, autograd keeps recipes in place of the results of ``cheap``.

    On CUDA, where such hooks cost more than they save, the functions in ``ops`` keep little by themselves, and the
    least if ``what``, as for ``recomputed``, is ``ALL_BUT_ATTENTION``. Nothing changes without autograd; in compiled
    graphs, as compilers make this choice by themselves; and inside ``recomputed`` with ``ALL_BUT_ATTENTION``, where
    cheap results would be computed three times. Where other hooks on saved tensors are active, such as those of a
    checkpoint around this call, what is kept here is passed to them.
    """
    if x is not None and context.device_type(x) == "cuda":
        return _Least() if what == ALL_BUT_ATTENTION and context.is_eager() else _UNCHANGED
    if not torch.is_grad_enabled() or not context.is_eager() or state.inside_larger:
        return _UNCHANGED
    return _Recipes()


_UNCHANGED = nullcontext()


def cheap(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)``, of which ``saving`` keeps no result: the backward pass computes it again.

    Args:
        function: draws no random numbers. The recipe of a module would be a second call: a module with hooks or of an
            unknown class is called as usual, and its result is kept.
        x: kept as the input of the second computation. It should be kept anyway.

    Returns:
        the result; inside ``saving`` under autocast it is of autocast's narrower type. Autograd would otherwise keep
        the copy that autocast makes of it, which has no recipe.
    """
    recipes = state.recipes
    if recipes is None or (isinstance(function, nn.Module) and not context.is_plain(function)):
        return function(x)
    return recipes.record(function, x)


class _Recipe:
    """How to compute a tensor again: a function of what autograd keeps, or of what another recipe gives.

    The result is held from the first request until all its users have it: the gradients of several operators, and
    recipes that start from it.
    """

    __slots__ = ("again", "function", "left", "memory", "module", "narrow", "source", "unpack", "version", "wanted")

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        source: Any,
        unpack: Callable[[Any], Tensor] | None,
        narrow: torch.dtype | None,
    ) -> None:
        self.function, self.source, self.unpack, self.narrow = function, source, unpack, narrow
        self.module = snapshot.Modules([function]) if isinstance(function, nn.Module) else None
        self.version = snapshot.version_of(source) if isinstance(source, Tensor) and unpack is None else None
        self.wanted = self.left = 0
        self.again: Tensor | None = None
        self.memory: StorageWeakRef

    def compute(self, x: Tensor) -> Tensor:
        y = self.function(x)
        return y if self.narrow is None else y.to(self.narrow)

    def want(self) -> None:
        """Registers one more user of the result."""
        self.wanted += 1
        if self.wanted == 1 and isinstance(self.source, _Recipe):
            self.source.want()

    def take(self) -> Tensor:
        """The result, computed again unless it is held, for one of its users."""
        if self.again is None:
            x = self.source.take() if isinstance(self.source, _Recipe) else self.base()
            as_it_was = nullcontext() if self.module is None else self.module.again()
            with torch.no_grad(), context.autocast_to(x.device, self.narrow), as_it_was:
                self.again = self.compute(x)
            self.left = self.wanted
        y = self.again
        self.left -= 1
        if not self.left:
            self.again = None
        return y

    def base(self) -> Tensor:
        """What autograd keeps in place of the results."""
        if self.unpack is not None:
            return self.unpack(self.source)
        snapshot.check(self.source, self.version)
        return cast(Tensor, self.source)


class _Part:
    """A view of a recipe's result, which autograd meant to keep."""

    __slots__ = ("offset", "recipe", "shape", "strides")

    def __init__(self, recipe: _Recipe, tensor: Tensor) -> None:
        self.recipe = recipe
        self.shape, self.strides, self.offset = tensor.shape, tensor.stride(), tensor.storage_offset()

    def tensor(self) -> Tensor:
        return self.recipe.take().as_strided(self.shape, self.strides, self.offset)


class _Recipes:
    """The recipes of one ``saving``, by the memory of their results."""

    def __init__(self) -> None:
        top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
        outer: Any = None if top is None else top(True)
        self.outer_pack: Callable[[Tensor], Any] | None = outer[0] if outer else None
        self.outer_unpack: Callable[[Any], Tensor] | None = outer[1] if outer else None
        self.known: dict[int, _Recipe] = {}
        self.before: _Recipes | None = None
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack)

    def __enter__(self) -> None:
        self.before, state.recipes = state.recipes, self
        self.hooks.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.hooks.__exit__(*error)
        state.recipes = self.before
        self.known.clear()  # what autograd keeps refers to the recipes that it needs

    def record(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        source: Any = self.find(x)
        if source is None:
            source = x.detach()
            if self.outer_pack is not None:
                source = self.outer_pack(source)
        recipe = _Recipe(function, source, self.outer_unpack, context.autocast_dtype_of(x))
        y = recipe.compute(x)
        # As long as a reference to it exists, even a weak one, no other tensor can have this memory's address.
        recipe.memory = StorageWeakRef(y.untyped_storage())
        self.known[recipe.memory.cdata] = recipe
        return y

    def find(self, tensor: Tensor) -> _Recipe | None:
        return self.known.get(tensor.untyped_storage()._cdata)

    def pack(self, tensor: Tensor) -> Any:
        if (recipe := self.find(tensor)) is not None:
            recipe.want()
            return _Part(recipe, tensor)
        # An operator may keep its own result. A result that refers to the operator as its grad_fn would be a cycle,
        # which is never freed (PyTorch sets grad_fn again when it unpacks).
        kept = tensor if tensor.grad_fn is None else tensor.detach()
        # PyTorch itself does not look whether somebody writes into what hooks have taken.
        return (kept, snapshot.version_of(kept)) if self.outer_pack is None else self.outer_pack(kept)

    def unpack(self, kept: Any) -> Tensor:
        if isinstance(kept, _Part):
            return kept.tensor()
        if self.outer_unpack is not None:
            return self.outer_unpack(kept)
        tensor, version = kept
        snapshot.check(tensor, version)
        return cast(Tensor, tensor)


# ---- results that functions for CUDA compute again


class _Least:
    """Within it, functions for CUDA keep as little as they can; not inside of something that is computed again."""

    def __enter__(self) -> None:
        self.before = state.policy
        if self.before == USUAL:
            state.policy = LEAST

    def __exit__(self, *error: Any) -> None:
        state.policy = self.before


def made(result: Tensor, function: Callable[..., Tensor], *sources: Tensor) -> Tensor:
    """Marks the result of ``function(*sources)``, which is cheap, so that ``sources_of`` may give the sources instead.

    Args:
        sources: kept anyway.
    """
    result.made_of = function, sources, result._version  # type: ignore[attr-defined]
    return result


def sources_of(x: Tensor) -> tuple[Callable[..., Tensor] | None, tuple[Tensor, ...]]:
    """What an autograd function keeps instead of its input: a function, and the tensors from which it computes the
    input again. None and no tensors where it has to keep the input itself."""
    found = x.__dict__.get("made_of")
    if found is None or found[2] != x._version:  # somebody has written into it
        return None, ()
    return found[:2]


# ---- whole functions


def recomputed(
    function: Callable[..., T], *inputs: Any, what: str = ALL, random: bool = False, modules: Iterable[nn.Module] = ()
) -> T:
    """``function(*inputs)``, of which training keeps little more than the inputs.

    Args:
        what: ``ALL``: all of the function is computed again in the backward pass. ``ALL_BUT_ATTENTION``: the results of
            PyTorch's attention kernels are kept where there are more keys than channels: there they are more expensive
            to compute again than linear maps, and no larger than the inputs. (PyTorch before 2.4 cannot keep
            them alone, and computes them again, too.) ``NOTHING``: the function is called as it is.
            In eager mode on CUDA, where following each operator costs more than the function itself, nothing is: there
            ``residual.add_branches`` computes again the branches that are not attention.
        random: whether the function draws random numbers.
        modules: those that it calls or whose parameters it reads, besides the ones among its inputs.

    The second computation stops at the last tensor that the backward pass needs. So where the function ends in a linear
    map, that map is not computed twice.
    """
    if what == NOTHING or not torch.is_grad_enabled():
        return function(*inputs)
    if what == ALL_BUT_ATTENTION and context.is_eager_on_cuda(inputs[0]):
        return function(*inputs)
    if context.is_transformed():  # PyTorch's function transforms refuse its checkpoints
        return function(*inputs)
    make_contexts = _ATTENTION_KEPT if what == ALL_BUT_ATTENTION else None
    if not context.is_eager():  # there are no recipes, and a compiler cannot follow what a thread keeps
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=random, **_options(make_contexts))
    as_they_are = snapshot.Modules([*modules, *snapshot.modules_in((function, inputs))])
    if state.policy == LEAST:
        function, inputs = _from_sources(function, inputs)

    runs = 0

    def run(*inputs: Any) -> T:
        nonlocal runs
        runs += 1
        # The same both times, whatever contexts are around the first call.
        before = state.recipes, state.inside_larger, state.again, state.policy
        keeps_casts = torch.is_autocast_cache_enabled()
        state.recipes, state.inside_larger, state.again = None, make_contexts is not None, runs > 1 or before[2]
        state.policy = ALL_RESULTS
        if make_contexts is not None:  # which counts the casts, of which autocast leaves out those that it has made
            torch.set_autocast_cache_enabled(False)
        try:
            with nullcontext() if runs == 1 else as_they_are.again():
                return function(*inputs)
        finally:
            state.recipes, state.inside_larger, state.again, state.policy = before
            torch.set_autocast_cache_enabled(keeps_casts)

    return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=random, **_options(make_contexts))


def _options(make_contexts: Callable[[], Any] | None) -> dict[str, Any]:
    return {} if make_contexts is None else {"context_fn": make_contexts}


def _from_sources(function: Callable[..., T], inputs: tuple[Any, ...]) -> tuple[Callable[..., T], tuple[Any, ...]]:
    """A function to be computed again, and its inputs, the first of which that is ``made`` of others is replaced by
    these. Its first call takes that input itself, whose gradient is wanted."""
    found = [sources_of(x) if isinstance(x, Tensor) else (None, ()) for x in inputs]
    place, make, sources = next(((i, *each) for i, each in enumerate(found) if each[0]), (0, None, ()))
    if make is None:
        return function, inputs
    first, needs, end = [inputs[place]], inputs[place].requires_grad, place + len(sources)

    def of_sources(*kept: Any) -> T:
        with torch.no_grad():
            x = first.pop() if first else make(*kept[place:end]).detach().requires_grad_(needs)
        return function(*kept[:place], x, *kept[end:])

    return of_sources, (*inputs[:place], *sources, *inputs[place + 1 :])


def is_again() -> bool:
    """Whether this call is the second one of something ``recomputed``, which must leave no further trace."""
    return state.again


def _attention_kept() -> Callable[[], Any] | None:
    """Makes the contexts for checkpointing all of a function except its expensive attention kernels; None where PyTorch
    has no such contexts."""
    make = getattr(checkpointing, "create_selective_checkpoint_contexts", None)
    if make is None:
        return None
    policy = checkpointing.CheckpointPolicy
    kernels = {getattr(torch.ops.aten, name).default for name in ATTENTION_KERNELS if hasattr(torch.ops.aten, name)}

    def choose(_: Any, operator: Any, *args: Any, **kwargs: Any) -> Any:
        if operator in kernels:
            _, heads, keys, width = args[1].shape
            expensive = keys > heads * width
        else:
            expensive = operator.name() in OWN_ATTENTION and args[0].shape[1] > args[0].shape[2] // 3
        return policy.MUST_SAVE if expensive else policy.PREFER_RECOMPUTE

    return partial(make, choose)


_ATTENTION_KEPT = _attention_kept()
