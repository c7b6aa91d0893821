"""Parameters in autocast's narrower type.

Autocast casts each parameter by an operator of its own, and each gradient back by another one. Here all linear maps of
a network are cast in one pass at the start of a forward pass, and the functions that use the copies give gradients in
the parameters' own type. In graphs that are compiled each block casts its own, and their gradients back, in one kernel.
"""

from __future__ import annotations

import threading
import weakref
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
    """The parameters of its linear maps and the biases of its convolutions of tiles, as they are now. Of modules that
    came after the first call they are cast one by one."""
    if (layers := _known.get(network)) is None:
        parts = _eager_parts(network)
        convs = [part for part in parts if isinstance(part, nn.Conv2d) and part.kernel_size == part.stride]
        known: list[tuple[nn.Module, tuple[str, ...]]]
        known = [(part, ("weight", "bias")) for part in parts if _is_linear(part)]
        known += [(conv, ("bias",)) for conv in convs]
        _known[network] = layers = [(weakref.ref(part), names) for part, names in known]
    found: list[Tensor] = []
    for layer, names in layers:
        if (part := layer()) is not None:
            own = part.__dict__["_parameters"]
            for name in names:
                if type(own.get(name)) in _TENSORS:
                    found.append(own[name])
    return found


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


_known: WeakKeyDictionary[nn.Module, list[tuple[weakref.ref[nn.Module], tuple[str, ...]]]] = WeakKeyDictionary()
"""No parameter is held: others may take its place, for a call (``torch.func.functional_call``) or for good."""


# ---- in compiled graphs


class _Graph(threading.local):
    """Of the graph that a compiler traces in this thread. Outside of it nothing changes."""

    def __init__(self) -> None:
        # Not attributes of the class: when the first graph sets one, PyTorch would compile it again.
        self.in_blocks = False
        """Whether each block casts the parameters of its linear maps."""
        self.copies: dict[nn.Module, tuple[Tensor, Tensor | None]] | None = None
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
    was made, or autocast is another one than where it was made: somebody may turn it off for a part of a block."""
    copies = graph.copies
    if copies is None or layer not in copies:
        return None
    weight, bias = copies[layer]
    return (weight, bias) if context.autocast_dtype(weight.device) == weight.dtype else None


def _in_graph(block: nn.Module) -> dict[nn.Module, tuple[Tensor, Tensor | None]] | None:
    if not context.is_compiling_to_run():
        return None
    layers = [layer for layer in dict.fromkeys(_linear_maps(block)) if _is_wide(layer)]
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


def _linear_maps(module: nn.Module) -> list[nn.Linear]:
    """Those in it that our functions compute. Another class calls its own, such as the adapter of a map: these are cast
    when they are called."""
    found: list[nn.Linear] = []
    for part in module.children():
        if context.is_plain(part):
            found += [cast(nn.Linear, part)] if _is_linear(part) else _linear_maps(part)
    return found


def _is_wide(layer: nn.Linear) -> bool:
    """Whether its parameters are ordinary tensors in fp32: those of other classes have casts of their own."""
    own = [parameter for parameter in (layer.weight, layer.bias) if parameter is not None]
    return all(type(parameter) in _TENSORS and parameter.dtype == torch.float32 for parameter in own)


class _Narrow(torch.autograd.Function):
    """Tensors in a narrower type, of which the first ones get gradients: (dtype, how many, *tensors)."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        # Had it names for the first ones, PyTorch's compiler would take a call with as many inputs as there are names
        # for one without `ctx`.
        dtype, ctx.trained, *tensors = inputs
        return tuple(_cast(tensors, dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, None, *_cast(grads[: ctx.trained], torch.float32), *(None,) * (len(grads) - ctx.trained)


def _cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    out = [torch.empty_like(x, dtype=dtype) for x in tensors]
    if out:
        # The operator itself says that it writes. PyTorch 2.11 drops `torch._foreach_copy_` from the graph of a
        # backward pass, as nothing reads its result.
        torch.ops.aten._foreach_copy_.default(out, [*tensors])
    return out
