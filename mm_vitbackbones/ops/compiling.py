"""Modules that ``torch.compile`` compiles one by one, with graphs that equal modules share."""

from __future__ import annotations

import contextlib
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mm_vitbackbones.ops import context
from mm_vitbackbones.ops.kernels import registration

Module = TypeVar("Module", bound=nn.Module)


def for_any_size(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of ``torch.compile`` with which one graph serves images of any size.

    At sizes that it does not know, PyTorch's compiler (of 2.13) has two faults. It chooses memory formats for
    convolutions, and fails where the input of one is kept for the backward pass, as it compares strides of unknown
    values: our grids have the right format, and nothing is to be chosen. And the backward pass of a convolution makes a
    graph valid for one size alone: an operator of our own calls it instead.
    """
    if options.get("backend", "inductor") != "inductor":
        return {**options}
    others = {name: value for name, value in options.items() if name not in ("mode", "options")}
    mode, chosen = options.get("mode"), options.get("options") or {}
    if mode is not None and chosen:
        return {**options}  # which PyTorch refuses, with its own words
    if mode not in (None, "default"):
        from torch._inductor import list_mode_options

        chosen = list_mode_options(mode, options.get("dynamic"))
    return {**others, "options": {"layout_optimization": False, **_passes(), **chosen}}


def _passes() -> dict[str, Any]:
    try:
        from torch._inductor.custom_graph_pass import CustomGraphPass
    except ImportError:  # an older PyTorch
        return {}

    class Convolutions(CustomGraphPass):
        def __call__(self, graph: Any) -> None:
            call_convolutions(graph)

        def uuid(self) -> str:
            """Of this pass, for PyTorch's cache of generated code."""
            return "mm_vitbackbones: convolutions, 1"

    return {"post_grad_custom_post_pass": Convolutions()}


def call_convolutions(graph: Any) -> None:
    """Replaces the backward passes of convolutions over maps, in a ``torch.fx`` graph, by the operator below."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.convolution_backward.default):
        grad, x, weight, _, stride, padding, dilation, transposed, _, groups, mask = node.args
        if transposed or x.meta["val"].dim() != 4:
            continue
        with graph.inserting_before(node):
            arguments = (grad, x, weight, stride, padding, dilation, groups, mask)
            call = graph.call_function(torch.ops.mm_vitbackbones.convolution_backward.default, arguments)
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        graph.erase_node(node)


def _convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the input (channels last), the weight and the bias; empty tensors where ``mask`` is False."""
    found = torch.ops.aten.convolution_backward(
        grad, x, weight, [len(weight)], stride, padding, dilation, False, [0] * len(stride), groups, mask
    )
    formats = (torch.channels_last, torch.contiguous_format, torch.contiguous_format)
    of_x, of_weight, of_bias = (
        gradient.contiguous(memory_format=format)
        if is_asked
        else x.new_empty(0)  # a CPU gives some that nobody asked for
        for gradient, format, is_asked in zip(found, formats, mask, strict=True)
    )
    return of_x, of_weight, of_bias


def _shapes_of_gradients(grad: Tensor, x: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    mask = others[-1]
    batch, channels, height, width = x.shape
    strides = (height * width * channels, 1, width * channels, channels)
    of_x = x.new_empty_strided((batch, channels, height, width), strides) if mask[0] else x.new_empty(0)
    of_weight = weight.new_empty(weight.shape if mask[1] else 0)
    return of_x, of_weight, weight.new_empty(weight.shape[0] if mask[2] else 0)


registration.operator(
    "convolution_backward(Tensor grad, Tensor input, Tensor weight, int[] stride, int[] padding, int[] dilation,"
    " int groups, bool[] mask) -> (Tensor, Tensor, Tensor)",
    _convolution_backward,
    _convolution_backward,
)
registration.in_graphs("convolution_backward", _shapes_of_gradients)


def problem(device: torch.device, **options: Any) -> str | None:
    """Why nothing can be compiled for a device, in one line; None where a small function compiles and runs.

    Only a trial finds out: a C++ compiler, the headers of Python and Triton are looked for when they are needed.

    Args:
        options: of ``torch.compile``.
    """
    try:
        with torch.no_grad():
            torch.compile(_trial, **options)(torch.zeros(16, device=device))
    except Exception as error:  # of many kinds: the compiler's, the operating system's, a backend's
        return _reason(error)
    return None


def _trial(x: Tensor) -> Tensor:
    return x.exp() + 1


def _reason(error: BaseException) -> str:
    """The first line of what went wrong at first."""
    while (cause := error.__cause__ or getattr(error, "inner_exception", None)) is not None:
        error = cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


class Clock:
    """Graphs that PyTorch compiles in this process, and the seconds that it takes, on the clock. An older PyTorch
    reports none."""

    def __init__(self) -> None:
        self.graphs, self.seconds, self.since = 0, 0.0, 0.0

    def start(self) -> None:
        with contextlib.suppress(ImportError):
            from torch._dynamo import callback_handler

            callback_handler.register_start_callback(self._begin)
            callback_handler.register_end_callback(self._end)

    def take(self) -> tuple[int, float]:
        """The graphs and seconds since the last call."""
        found = self.graphs, self.seconds
        self.graphs, self.seconds = 0, 0.0
        return found

    def _begin(self, *reasons: Any) -> None:
        self.since = time.perf_counter()
        # The backward pass of a graph is compiled when it is needed.
        self.graphs += all(reason.callback_trigger.name == "DYNAMO" for reason in reasons)

    def _end(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self.since


def compiled(
    modules: Mapping[Module, int], function: Callable[..., Any], **options: Any
) -> list[tuple[Callable[..., Any], int]]:
    """``function``, whose first argument is the module, as ``torch.compile`` makes it.

    Modules of one kind share its graphs: those that differ in their weights and in numbers with a fraction alone. Each
    kind has graphs of its own: PyTorch keeps few for one function, and after those computes without. Frozen modules,
    whose graphs no other module could use, are of kinds of their own.

    Args:
        modules: each with the number of its grid. A kind that has several grids gets the graph for any size alone: with
            one image, the second grid needs it already.
        options: of ``torch.compile``.

    Returns:
        for each module the compiled function, and the number of its kind.
    """
    keys = [_kind(module) if _SHARES else id(module) for module in modules]
    grids: dict[Any, set[int]] = {}
    for key, grid in zip(keys, modules.values(), strict=True):
        grids.setdefault(key, set()).add(grid)
    kinds: dict[Any, tuple[Callable[..., Any], int]] = {}
    for key, of_kind in grids.items():
        found, dynamic = torch.compile(_copy(function, len(kinds)), **options), options.get("dynamic")
        at_once = dynamic is True or len(of_kind) > 1
        kinds[key] = found if dynamic is False else AnySize(found, at_once), len(kinds)
    return [kinds[key] for key in keys]


class AnySize:
    """A compiled function with a graph for the tensors' first shapes and, where others follow, one for any height and
    width.

    PyTorch by itself makes a graph for any height, then one for any width. Each takes longer to compile than the first.

    Args:
        at_once: whether the first graph is for any height and width already.
    """

    def __init__(self, function: Callable[..., Any], at_once: bool = False) -> None:
        self.function, self.at_once = function, at_once
        self.first: list[torch.Size] = []

    def __call__(self, module: nn.Module, *inputs: Any) -> Any:
        inputs = tuple(map(_own, inputs))
        tensors = [*_tensors(inputs)]
        shapes = [tensor.shape for tensor in tensors]
        if not self.first:
            # A batch of none never comes.
            self.first = [torch.Size((0, *shape[1:])) for shape in shapes] if self.at_once else shapes
        if shapes != self.first:
            for tensor, shape in zip(tensors, self.first, strict=False):
                if tensor.shape != shape:
                    torch._dynamo.maybe_mark_dynamic(tensor, _changing(tensor.shape, shape))
        return self.function(module, *inputs)


def _own(given: Any) -> Any:
    """An input, copied where it repeats one entry. The first block of a stage may get a class token that is expanded to
    a batch, the others one with memory of its own: graphs are for one of both.

    A vector that is a view, such as one of several draws, is copied, too: a graph for any size would have their number
    and where it begins as sizes, and PyTorch takes sizes that are equal at first, such as a height, for the same."""
    if isinstance(given, Tensor):
        if given.dim() == 1 and given._is_view():
            return given.clone()
        repeats = any(step == 0 and size > 1 for step, size in zip(given.stride(), given.shape, strict=True))
        return given.contiguous() if repeats else given
    if type(given) is dict:
        return {key: _own(value) for key, value in given.items()}
    return type(given)(map(_own, given)) if type(given) in (tuple, list) else given


def _tensors(inputs: Sequence[Any]) -> Iterator[Tensor]:
    for each in inputs:
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, (tuple, list)):
            yield from _tensors(each)
        elif isinstance(each, Mapping):
            yield from _tensors([*each.values()])


def _changing(shape: torch.Size, first: torch.Size) -> list[int]:
    """The dimensions that a graph should leave open: those that are not as before, and all between the batch and the
    channels."""
    inner = range(1, len(shape) - 1)
    return [i for i, size in enumerate(shape) if size > 1 and (i in inner or first[i : i + 1] != (size,))]


def _kind(module: nn.Module) -> Any:
    parts = [
        (
            name,
            type(part),
            tuple((key, value) for key, value in vars(part).items() if isinstance(value, _FIXED) and key != "training"),
            tuple((key, value.shape, value.requires_grad) for key, value in part.named_parameters(recurse=False)),
        )
        for name, part in module.named_modules()
    ]
    return tuple(parts)


_FIXED = (int, str, tuple)
"""Attributes that a graph is valid for one value of."""

_SHARES = context.PYTORCH >= (2, 5)
"""Whether the weights of a module are inputs of a graph; before, a graph held those of one module."""


def _copy(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    """The same function with code of its own, by which PyTorch keeps and counts graphs."""
    code = function.__code__.replace(co_name=f"{function.__name__}_{number}")
    return types.FunctionType(code, function.__globals__, code.co_name, function.__defaults__, function.__closure__)
