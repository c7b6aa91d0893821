"""Parameters in autocast's narrower type.

Autocast casts each parameter by an operator of its own, and each gradient back by another one. Here all linear maps of
a network are cast in one pass at the start of a forward pass, and the functions that use the copies give gradients in
the parameters' own type. In graphs that are compiled each block casts its own, and their gradients back, in one kernel.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast
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
        with _in_blocks(dtype is not None and context.is_compiling_to_run() and context.device_type(x) == "cuda"):
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


# ---- in compiled graphs


class _Graph:
    """Of the graph that a compiler traces. Outside of it nothing changes."""

    in_blocks = False
    """Whether each block casts the parameters of its linear maps."""
    copies: dict[nn.Module, tuple[Tensor, Tensor | None]] | None = None
    """Weight and bias of the linear maps of a block."""


graph = _Graph()


@contextmanager
def _in_blocks(asked: bool) -> Iterator[None]:
    before, graph.in_blocks = graph.in_blocks, asked
    try:
        yield
    finally:
        graph.in_blocks = before


@contextmanager
def copies_of_block(block: nn.Module) -> Iterator[None]:
    """Within it, ``of_layer`` gives the parameters of a block's linear maps from one pass over them, where autocast is
    on in a graph that is compiled for CUDA."""
    found = None if graph.copies is not None else _in_graph(block)
    if found is None:
        yield
        return
    graph.copies = found
    try:
        yield
    finally:
        graph.copies = None


def of_layer(layer: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """The weight of a linear map in autocast's type, and its bias, which gets no gradient from here; None where no copy
    was made."""
    copies = graph.copies
    return copies[layer] if copies is not None and layer in copies else None


def _in_graph(block: nn.Module) -> dict[nn.Module, tuple[Tensor, Tensor | None]] | None:
    if not context.is_compiling_to_run():
        return None
    linear = [cast(nn.Linear, part) for part in block.modules() if _is_linear(part) and context.is_plain(part)]
    layers = [layer for layer in linear if _is_wide(layer)]
    if not layers or context.device_type(layers[0].weight) != "cuda":
        return None
    dtype = context.autocast_dtype(layers[0].weight.device)
    if dtype is None:
        return None
    # A weight that is frozen has no gradient, which nobody shall compute.
    trained = [layer for layer in layers if layer.weight.requires_grad]
    layers = [*trained, *(layer for layer in layers if not layer.weight.requires_grad)]
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    copies = _Narrow.apply(dtype, len(trained), *(layer.weight for layer in layers), *biases)
    weights, of_biases = copies[: len(layers)], iter(copies[len(layers) :])
    return {
        layer: (weight, None if layer.bias is None else next(of_biases))
        for layer, weight in zip(layers, weights, strict=True)
    }


def _is_wide(layer: nn.Linear) -> bool:
    """Whether its parameters are ordinary tensors in fp32: those of other classes have casts of their own."""
    own = [parameter for parameter in (layer.weight, layer.bias) if parameter is not None]
    return all(type(parameter) in _TENSORS and parameter.dtype == torch.float32 for parameter in own)


class _Narrow(torch.autograd.Function):
    """Tensors in a narrower type, of which the first ones get gradients."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, trained: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.trained = trained
        return tuple(_cast(tensors, dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, None, *_cast(grads[: ctx.trained], torch.float32), *(None,) * (len(grads) - ctx.trained)


def _cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    out = [torch.empty_like(x, dtype=dtype) for x in tensors]
    if out:
        torch._foreach_copy_(out, [*tensors])
    return out
