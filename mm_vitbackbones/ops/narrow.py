"""Parameters in autocast's narrower type.

Autocast casts each parameter by an operator of its own, and each gradient back by another one. Here all linear maps of
a network are cast in one pass at the start of a forward pass, and the functions that use the copies give gradients in
the parameters' own type.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mm_vitbackbones.ops import context

is_initialized = getattr(torch.distributed, "is_initialized", lambda: False)


class _Local(threading.local):
    copies: dict[int, Tensor] | None = None
    """By the address of a parameter's object, which lives as long as the module that is called."""


_local = _Local()


def of(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """A parameter in a type: itself, the copy that ``copies`` has made, or a new copy."""
    if parameter.dtype == dtype:
        return parameter
    copies = _local.copies
    copy = None if copies is None else copies.get(id(parameter))
    return parameter.to(dtype) if copy is None or copy.dtype != dtype else copy


@contextmanager
def copies(network: nn.Module, x: Tensor) -> Iterator[None]:
    """Within it, ``of`` gives the weights and biases of all linear maps of a network from one pass over them, where
    autocast is on for eager computation on CUDA."""
    dtype = context.autocast_dtype(x.device)
    if dtype is None or not context.is_eager_on_cuda(x):
        yield
        return
    device = x.device
    wide = torch.float32
    parameters = [p for p in _parameters(network) if p.dtype == wide and p.device == device]
    if is_initialized():
        parameters = [p for p in parameters if _is_whole(p)]
    with torch.no_grad():
        narrow = [torch.empty_like(p, dtype=dtype) for p in parameters]
        if parameters:
            torch._foreach_copy_(narrow, parameters)
    before, _local.copies = _local.copies, {id(p): copy for p, copy in zip(parameters, narrow, strict=True)}
    try:
        yield
    finally:
        _local.copies = before


def _parameters(network: nn.Module) -> list[Tensor]:
    """The parameters of its linear maps and the biases of its convolutions of tiles, as they were at the first call.
    What came later is cast by itself."""
    if (known := _known.get(network)) is None:
        parts = _eager_parts(network)
        known = [p for part in parts if _is_linear(part) for p in part.parameters(recurse=False)]
        convs = [part for part in parts if isinstance(part, nn.Conv2d) and part.kernel_size == part.stride]
        known += [conv.bias for conv in convs if conv.bias is not None]
        _known[network] = known = [p for p in known if type(p) in _TENSORS]
    return known


def _is_linear(part: nn.Module) -> bool:
    """Whether it is a linear map of PyTorch's class or of ours."""
    return isinstance(part, nn.Linear) and context.is_known(part)


def _eager_parts(network: nn.Module) -> list[nn.Module]:
    """Its modules, except those of compiled blocks, which cast by themselves."""
    parts = [network]
    for part in parts:  # which grows
        parts += [inner for inner in part.children() if getattr(inner, "compiled", None) is None]
    return parts


_TENSORS = {Tensor, nn.Parameter}


def _is_whole(parameter: Tensor) -> bool:
    """Whether its values are here: those of a sharded module are, in another tensor, while it is called."""
    return parameter.untyped_storage().nbytes() >= parameter.numel() * parameter.element_size()


def forget(network: nn.Module) -> None:
    """To be called when other parts of a network are compiled than at its first call."""
    _known.pop(network, None)


_known: WeakKeyDictionary[nn.Module, list[Tensor]] = WeakKeyDictionary()
