"""Modules as they are in a forward pass, for a second computation in the backward pass: what it reads besides its
inputs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


class Modules:
    """Modules as they are in the first computation: their parameters and buffers, their modes and hooks.

    ``torch.func.functional_call`` gives other weights for the duration of a forward pass, and hooks may be there as
    long: a backward pass after it would compute something else again. And autograd refuses what has been written into
    since it was kept, but does not see what is not kept.
    """

    __slots__ = ("states", "tensors")

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        # Those of TorchScript have no such state in Python.
        every = (part for module in modules for part in (module.modules() if module._modules else (module,)))
        parts = {part: None for part in every if "training" in part.__dict__}
        self.tensors = [
            (place, [(name, x, version_of(x) if counts else None) for name, x in place.items() if x is not None])
            for part in parts
            for place, counts in ((part._parameters, True), (part._buffers, False))
            if place
        ]
        self.states = [
            (state, state["training"], {name: OrderedDict(state[name]) for name in _HOOKS if state.get(name)})
            for state in (part.__dict__ for part in parts)
        ]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Within it, the modules are as they were.

        Raises:
            RuntimeError: for a parameter that has been written into.
        """
        for _, tensors in self.tensors:
            for _, x, version in tensors:
                check(x, version)
        moved: list[tuple[dict[str, Any], str, Any]] = []

        def put(place: dict[str, Any], name: str, value: Any) -> None:
            moved.append((place, name, place[name]))
            place[name] = value

        try:
            for place, tensors in self.tensors:
                for name, x, _ in tensors:
                    if place.get(name, x) is not x:  # what is gone is an attribute now, as in FSDP
                        put(place, name, x)
            for state, training, hooks in self.states:
                if state["training"] != training:
                    put(state, "training", training)
                for name in _HOOKS:
                    if (state.get(name) or hooks.get(name)) and state[name] != hooks.get(name, {}):
                        put(state, name, hooks.get(name, OrderedDict()))
            yield
        finally:
            for place, name, value in moved:
                place[name] = value


def version_of(x: Tensor) -> int | None:
    """How often a tensor has been written into; None for one of inference, which PyTorch does not count."""
    return None if x.is_inference() else x._version


def check(x: Tensor, version: int | None) -> None:
    """Refuses a tensor that has been written into since it had this version, as autograd does.

    Raises:
        RuntimeError: for such a tensor.
    """
    if version is not None and x._version != version:
        raise RuntimeError(
            f"a tensor of shape {tuple(x.shape)} that is needed for gradient computation has been modified by an "
            "inplace operation since the forward pass: the backward pass computes a part of that again to save memory. "
            "Call backward() before whatever writes into it, such as optimizer.step()"
        )


def modules_in(x: Any) -> Iterator[nn.Module]:
    """The modules among what a function takes: by themselves, in tuples, lists and mappings, and whose method it is."""
    if isinstance(x, nn.Module):
        yield x
    elif isinstance(x, Mapping):
        for each in x.values():
            yield from modules_in(each)
    elif isinstance(x, (tuple, list)):
        for each in x:
            yield from modules_in(each)
    elif (owner := getattr(x, "__self__", None)) is not None:
        yield from modules_in(owner)
