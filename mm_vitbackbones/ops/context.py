"""What PyTorch is doing around a call, and what a user has attached to a module.

All fast forms ask here whether they may run. PyTorch is asked in the same way in every version from 2.1 on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import (
    _global_backward_hooks,
    _global_backward_pre_hooks,
    _global_forward_hooks,
    _global_forward_pre_hooks,
)

Class = TypeVar("Class", bound=type)
Function = TypeVar("Function", bound=Callable[..., Any])
PYTORCH = tuple(map(int, torch.__version__.split(".")[:2]))
"""The version of PyTorch, such as (2, 13)."""
ROCM = torch.version.hip is not None
"""Whether this PyTorch is for AMD's cards. It calls them "cuda", too, so that they get the forms for CUDA."""


class _Local(threading.local):
    kept: frozenset[int] | None = None
    """Inside ``unobserved``: the addresses of its inputs, which nobody may write into."""
    fp32_on_cpu: bool | None = None
    """Inside ``unobserved``: whether its inputs are worked on in eager fp32 inference on a CPU."""


_local = _Local()
_pretended: str | None = None
"""Inside ``pretend_device``: that kind."""


if hasattr(torch.compiler, "is_compiling"):
    _is_compiling: Callable[[], bool] = torch.compiler.is_compiling
else:
    from torch._dynamo import is_compiling as _is_compiling


KEEPS_GRAPHS_WHOLE = PYTORCH >= (2, 9)
"""Whether ``torch.compile`` makes one graph of a block. Older versions of PyTorch split it where we ask whether modules
are plain, and 2.7 does not know whether it traces for ``torch.export``."""


def constant_in_graphs(function: Function) -> Function:
    """A decorator: a graph of ``torch.compile`` holds the answer of a function, found while it is traced, and not the
    question. ``torch.compiler.assume_constant_result`` does the same, and imports the compiler."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def is_compiling() -> bool:
    """Whether ``torch.compile`` or ``torch.export`` traces this call."""
    return _is_compiling()


@constant_in_graphs  # before 2.12 PyTorch itself answers yes in all graphs
def is_exporting() -> bool:
    """Whether ``torch.export`` traces this call, also for ONNX. A graph that serves every size of an image is wanted,
    of plain operators that other runtimes have."""
    if KEEPS_GRAPHS_WHOLE:
        return torch.compiler.is_exporting()
    if not hasattr(torch.compiler, "is_dynamo_compiling"):
        return False
    return is_compiling() and not torch.compiler.is_dynamo_compiling()


def gradients(enabled: bool) -> AbstractContextManager[Any]:
    """``torch.set_grad_enabled``. An exported graph has no gradients, and would hold the switch as an operation, with
    which PyTorch cannot save it."""
    return nullcontext() if is_exporting() else torch.set_grad_enabled(enabled)


@contextmanager
def for_every_size() -> Iterator[None]:
    """Within it, ``torch.export`` asks for no size of an image, so that the graph holds for all of them.

    PyTorch itself asks whether a size is 1 (a level of an image of 32 pixels has one cell), where it could leave that
    open, and whether a batch is large enough for one of its libraries of convolutions.
    """
    if not is_exporting() or torch.compiler.is_dynamo_compiling():
        yield
        return
    from torch.fx.experimental import _config as symbols  # of a PyTorch that exports

    if not hasattr(symbols, "backed_size_oblivious"):
        yield
        return
    onednn = torch._C._get_mkldnn_enabled()  # PyTorch's context for it also sets others, which warn of missing GPUs
    torch._C._set_mkldnn_enabled(False)
    try:
        with (
            symbols.patch(backed_size_oblivious=True),  # type: ignore[attr-defined]
            torch.backends.nnpack.flags(enabled=False),
        ):
            yield
    finally:
        torch._C._set_mkldnn_enabled(onednn)


def is_compiling_to_run() -> bool:
    """Whether ``torch.compile`` traces this call, for a graph that runs in this process: it may hold operators of ours.
    Not ``torch.export``, and not under a function transform, such as ``torch.func.grad``, which does not know their
    gradients while it is traced; with a PyTorch that splits graphs (before 2.9) always False."""
    if not KEEPS_GRAPHS_WHOLE:
        return False
    return is_compiling() and not is_exporting() and not _are_functions_transformed_in_graph()


def is_eager() -> bool:
    """Whether this call is plain computation: not compiled, exported or traced, under no function transform, and not
    followed by forward-mode differentiation."""
    return not (
        _is_compiling() or torch._C._is_tracing() or _are_functions_transformed() or forward_ad._current_level >= 0
    )


def is_transformed() -> bool:
    """Whether this call is under a function transform, such as those of ``torch.func``, or is followed by forward-mode
    differentiation, and is not compiled."""
    return not _is_compiling() and (_are_functions_transformed() or forward_ad._current_level >= 0)


def trains(tensors: Iterable[Tensor]) -> bool:
    """Whether a result of these tensors gets gradients. A function transform that ``torch.compile`` traces does not say
    of which ones."""
    if not torch.is_grad_enabled():
        return False
    return any(x.requires_grad for x in tensors) or (_is_compiling() and _are_functions_transformed_in_graph())


_are_functions_transformed: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)


@constant_in_graphs
def _are_functions_transformed_in_graph() -> bool:
    """``_are_functions_transformed`` for a graph."""
    return _are_functions_transformed()


dispatch_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)
"""How many modes watch or replace operators; one where PyTorch cannot tell."""


def is_fake() -> bool:
    """Whether operators give fake tensors, which have shapes and no values: in ``FakeTensorMode``, which counts memory
    before a training, and in which compilers trace."""
    return dispatch_modes() > 0 and _fake_mode() is not None


def _fake_mode() -> object:
    if hasattr(torch._C, "_TorchDispatchModeKey"):
        return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    from torch._guards import detect_fake_mode  # before 2.2

    return detect_fake_mode()


_HAS_AUTOCAST_BY_KIND = hasattr(torch, "get_autocast_dtype")


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The narrower type of the autocast that is on for a device; None where it is off or not known."""
    kind = device.type
    if _HAS_AUTOCAST_BY_KIND:
        if kind != "cuda" and kind != "cpu" and not torch.amp.is_autocast_available(kind):
            return None
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    if kind == "cpu":
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return torch.get_autocast_gpu_dtype() if kind == "cuda" and torch.is_autocast_enabled() else None


def autocast_dtype_of(x: Tensor) -> torch.dtype | None:
    """The type that autocast computes with ``x`` in; None where it leaves it alone: where it is off, and fp64."""
    return None if x.dtype == torch.float64 else autocast_dtype(x.device)


def autocast_to(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """A context in which autocast is as ``autocast_dtype`` has reported it: to that type, or off."""
    if autocast_dtype(device) == dtype:
        return nullcontext()
    if dtype is None and _HAS_AUTOCAST_BY_KIND and is_eager():
        return _AutocastOff(device.type)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


class _AutocastOff:
    """``torch.autocast`` to turn it off, where it is on. PyTorch's own takes as long as three launches; what it does
    besides is for the copies of weights that it keeps, and this context makes none."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __enter__(self) -> None:
        torch.set_autocast_enabled(self.kind, False)

    def __exit__(self, *error: Any) -> None:
        torch.set_autocast_enabled(self.kind, True)


# ---- devices


def device_type(tensor: Tensor) -> str:
    """The kind of device whose fast forms serve a tensor: its own, except inside ``pretend_device``."""
    return _pretended or tensor.device.type


@contextmanager
def pretend_device(kind: str) -> Iterator[None]:
    """Within it, all threads take the forms of another kind of device, so that a CPU can test those of ``"cuda"``."""
    global _pretended
    before, _pretended = _pretended, kind
    try:
        yield
    finally:
        _pretended = before


def is_to_repeat(x: Tensor) -> bool:
    """Whether gradients are to be the same in each run (``torch.use_deterministic_algorithms``) on CUDA, where some of
    PyTorch's operators add up in any order, and raise then."""
    return torch.are_deterministic_algorithms_enabled() and device_type(x) == "cuda"


def is_eager_on_cuda(x: Tensor) -> bool:
    """Whether ``x`` is worked on in eager mode on CUDA, in training or inference."""
    # Without `x.device.type`, which makes a string: it takes several times as long, and each block asks several times.
    return (x.is_cuda if _pretended is None else _pretended == "cuda") and type(x) is Tensor and is_eager()


# ---- what is attached to modules

_PLAIN: set[type] = {nn.Linear, nn.Conv2d, nn.LayerNorm, nn.BatchNorm2d, nn.Identity, nn.ModuleList, nn.ModuleDict}
_WEIGHTS = {nn.Parameter, Tensor, type(None)}


def plain(kind: Class) -> Class:
    """A decorator: modules of exactly this class do what its ``forward`` says and keep no input or result."""
    _PLAIN.add(kind)
    return kind


def is_known(module: nn.Module) -> bool:
    """Whether a module is exactly of a class that ``plain`` has marked, or of one of PyTorch's."""
    return type(module) in _PLAIN


def is_plain(module: nn.Module) -> bool:
    """Whether a fast form may use the weights of a module instead of calling it.

    Its class is exactly one that is known, which excludes parametrisations, adapters, quantised layers and a user's
    subclasses; its weight is a tensor of PyTorch's own and lies with its parameters, as does its bias, where FSDP takes
    those of sharded modules away; and nothing is attached to its calls: no hook of any kind, no other ``forward``.
    """
    state = module.__dict__
    # With ``has_hooks`` written out: each block asks this of all its modules, and a call takes as long as the answer.
    return not (
        type(module) not in _PLAIN
        or state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or "forward" in state
        or type(state["_parameters"].get("weight")) not in _WEIGHTS
        or "weight" in state
        or "bias" in state
        or _global_forward_hooks  # dictionaries, which PyTorch writes into and never replaces
        or _global_forward_pre_hooks
        or _global_backward_hooks
        or _global_backward_pre_hooks
    )


def is_plain_in_export(module: nn.Module) -> bool:
    """``is_plain`` while ``torch.export`` traces, where weights are symbols."""
    return is_exporting() and is_known(module) and not has_hooks(module) and "forward" not in module.__dict__


def is_plain_tree(module: nn.Module) -> bool:
    """Whether a module and all its parts are plain, so that nobody sees what passes between them."""
    tree = [module]
    for part in tree:  # which grows; a recursion would take twice the time, in each block of each inference
        if not is_plain(part):
            return False
        if inner := part.__dict__["_modules"]:
            tree += [x for x in inner.values() if x is not None]
    return True


def has_hooks(module: nn.Module) -> bool:
    """Whether anything is called with a module's inputs, results or gradients when it is called."""
    state = module.__dict__
    return bool(
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or _global_forward_hooks  # dictionaries, which PyTorch writes into and never replaces
        or _global_forward_pre_hooks
        or _global_backward_hooks
        or _global_backward_pre_hooks
    )


@contextmanager
def unobserved(*inputs: Tensor) -> Iterator[None]:
    """Within it, this thread calls only plain modules on these inputs. Each may overwrite the results of the one
    before, but not the inputs."""
    before = _local.kept, _local.fp32_on_cpu
    _local.kept = frozenset(x.untyped_storage().data_ptr() for x in inputs)
    _local.fp32_on_cpu = is_fp32_inference_on_cpu(inputs[0])
    try:
        yield
    finally:
        _local.kept, _local.fp32_on_cpu = before


def is_fp32_inference_on_cpu(x: Tensor) -> bool:
    """Whether ``x`` is worked on in eager fp32 inference on a CPU."""
    if _local.fp32_on_cpu is not None:  # inside `unobserved` nothing but the type of a tensor can change
        return _local.fp32_on_cpu and x.dtype == torch.float32
    return (
        not torch.is_grad_enabled()
        and x.dtype == torch.float32
        and device_type(x) == "cpu"
        and type(x) is Tensor
        and autocast_dtype(x.device) is None
        and is_eager()
    )


def may_overwrite(tensor: Tensor) -> bool:
    """Whether a plain module that is called with this tensor may write into it."""
    return _local.kept is not None and tensor.untyped_storage().data_ptr() not in _local.kept


def release(tensor: Tensor) -> None:
    """Frees the memory of an input that a plain module no longer needs, if it may be overwritten.

    Without it, the callers hold the input (for example a norm's result) until the module returns: one map too many.
    """
    if may_overwrite(tensor):
        tensor.untyped_storage().resize_(0)
