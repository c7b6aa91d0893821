"""How a kernel becomes an operator of PyTorch."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mm_vitbackbones.errors import UserError
from mm_vitbackbones.ops import context

NAMESPACE = "mm_vitbackbones"
AMPERE = (8, 0)
"""The oldest compute capability whose arithmetic the kernels need: bf16 and asynchronous copies."""

MEASURED = frozenset({(9, 0)})
"""Compute capabilities of the cards where the kernels were measured against PyTorch's operators, and were faster:
Hopper (an H200). Others run PyTorch's operators, until ``SWITCH`` asks for the kernels."""

SWITCH = "MM_VITBACKBONES_KERNELS"
"""The environment variable that asks for the kernels on every card that can run them (1), or on none (0)."""

OLDEST_TRITON = (3, 3)
"""The oldest version that compiles the kernels: they keep tensors in tuples. It is that of PyTorch 2.7."""

CAN_REGISTER_GRADIENTS = hasattr(torch.library, "register_fake") and hasattr(torch.library, "register_autograd")
references: dict[str, Callable[..., Any]] = {}
"""Of each operator, by its name: what runs without kernels, for who counts that."""
_TENSORS = {Tensor, nn.Parameter}
_library = torch.library.Library(NAMESPACE, "DEF")
_forced: bool | None = None


def operator(schema: str, reference: Callable[..., Any], launch: Callable[..., Any]) -> Callable[..., Any]:
    """Registers ``torch.ops.mm_vitbackbones.<name>`` and returns a function that calls it, or in eager mode on CUDA the
    kernel itself.

    Args:
        schema: in PyTorch's form, ``"name(Tensor x, float eps) -> Tensor"``. An argument that is written to is marked,
            ``Tensor(a!)``.
        reference: the same by PyTorch's operators, on any device; shapes for compilers come from it.
        launch: starts the kernel. It is called with tensors on CUDA, where ``usable`` has said yes.
    """
    name = schema.split("(")[0]

    def on_cuda(*args: Any) -> Any:
        return launch(*args) if usable(args[0]) else reference(*args)

    references[name] = reference
    _library.define(schema)
    _library.impl(name, reference, "CompositeExplicitAutograd")
    _library.impl(name, on_cuda, "CUDA")
    kernel = launch if isinstance(launch, _Kernel) else None
    registered = getattr(getattr(torch.ops, NAMESPACE), name).default

    def call(*args: Any) -> Any:
        if not is_direct(args[0]):
            return registered(*args)
        # `_Kernel.__call__` written out: one call less for each launch.
        return launch(*args) if kernel is None else (kernel.found or kernel.function())(*args)

    return call


def own(result: Tensor, source: Tensor) -> Tensor:
    """In order, and in other memory than what it may be a view of, as the result of an operator has to be."""
    result = result.contiguous()
    return result.clone() if result.data_ptr() == source.data_ptr() else result


def is_direct(tensor: Tensor) -> bool:
    """Whether a kernel is started by its own function. PyTorch's dispatcher would take longer than the launch, but
    compilers, and modes that watch operators, need it."""
    # Whether it is eager comes first: `torch.compile` would split a graph at a question that it cannot answer.
    plain = type(tensor) in _TENSORS and tensor.is_cuda and context.is_eager()
    return plain and not context.dispatch_modes() and usable(tensor)


def in_graphs(
    name: str, shapes: Callable[..., Any], backward: Callable[..., Any] | None = None, keep: Any = None
) -> None:
    """Makes compiled graphs hold an operator as one call, with its gradient. PyTorch before 2.4 cannot.

    Args:
        name: of a registered operator.
        shapes: gives empty results for its arguments; their sizes may be unknown.
        backward: gives the gradients of its arguments, see ``torch.library.register_autograd``.
        keep: keeps arguments for it.
    """
    if not CAN_REGISTER_GRADIENTS:
        return
    torch.library.register_fake(f"{NAMESPACE}::{name}", shapes, lib=_library)
    if backward is not None:
        torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=keep, lib=_library)


def kernel(module: str, name: str) -> Callable[..., Any]:
    """The function ``name`` of ``ops.kernels.triton.<module>``, which is imported at the first call."""
    return _Kernel(module, name)


class _Kernel:
    """See ``kernel``."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name
        self.found: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        return (self.found or self.function())(*args)

    def function(self) -> Callable[..., Any]:
        """The function itself."""
        if self.found is None:
            module = importlib.import_module(f"mm_vitbackbones.ops.kernels.triton.{self.module}")
            self.found = getattr(module, self.name)
        return self.found


def usable(tensor: Tensor) -> bool:
    """Whether kernels run on the device of a tensor."""
    return tensor.is_cuda and _is_usable_on(tensor.device.index)


def serve(tensor: Tensor) -> bool:
    """Whether the forms with kernels are those of a call on CUDA. A tensor elsewhere has them where a test pretends
    that it is on CUDA, by the references of the kernels."""
    return _is_usable_on(tensor.device.index) if tensor.is_cuda else _forced is not False


def serve_in_graphs(tensor: Tensor) -> bool:
    """Whether a graph for CUDA is to hold operators with gradients of their own, in place of PyTorch's."""
    return CAN_REGISTER_GRADIENTS and serve(tensor)


@context.constant_in_graphs
def _is_usable_on(index: int | None) -> bool:
    return (_is_wanted_on(index) if _forced is None else _forced) and _can_run_on(index)


@contextmanager
def forced(on: bool) -> Iterator[None]:
    """Within it, all threads run the kernels on every card that can (``True``), or the references (``False``), whatever
    the card and the environment."""
    global _forced
    before, _forced = _forced, on
    try:
        yield
    finally:
        _forced = before


def asked() -> bool | None:
    """What the environment asks for, or None.

    Raises:
        UserError: it asks for neither 0 nor 1.
    """
    text = os.environ.get(SWITCH, "")
    if text not in ("", "0", "1"):
        raise UserError(
            f"the environment variable {SWITCH} is {text!r}: give 1 for the kernels of this package on every GPU that "
            "can run them, 0 for PyTorch's operators alone, or leave it out"
        )
    return text == "1" if text else None


@functools.cache
def _is_wanted_on(index: int | None) -> bool:
    wanted = asked()
    return torch.cuda.get_device_capability(index) in MEASURED if wanted is None else wanted


@functools.cache
def _can_run_on(index: int | None) -> bool:
    """Whether a GPU and the installed Triton can run the kernels at all. AMD's cards have numbers like those of compute
    capabilities, (9, 0) among them, and the kernels were never tried there."""
    return not context.ROCM and _has_triton() and torch.cuda.get_device_capability(index) >= AMPERE


def _has_triton() -> bool:
    if importlib.util.find_spec("triton") is None:
        return False
    version = importlib.import_module("triton").__version__.split(".")
    return (int(version[0]), int(version[1])) >= OLDEST_TRITON
