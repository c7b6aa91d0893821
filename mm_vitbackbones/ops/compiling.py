"""Modules that ``torch.compile`` compiles one by one, with graphs that equal modules share."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


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


def compiled(
    modules: Sequence[nn.Module], function: Callable[..., Any], **options: Any
) -> list[tuple[Callable[..., Any], int]]:
    """``function``, whose first argument is the module, as ``torch.compile`` makes it.

    Modules of one kind share its graphs: those that differ in their weights and in numbers with a fraction alone. Each
    kind has graphs of its own: PyTorch keeps few for one function, and after those computes without.

    Returns:
        for each module the compiled function, and the number of its kind.
    """
    kinds: dict[Any, tuple[Callable[..., Any], int]] = {}
    for module in modules:
        key = _kind(module) if _SHARES else id(module)
        if key not in kinds:
            kinds[key] = torch.compile(_copy(function, len(kinds)), **options), len(kinds)
    return [kinds[_kind(module) if _SHARES else id(module)] for module in modules]


def _kind(module: nn.Module) -> Any:
    parts = [
        (
            name,
            type(part),
            tuple((key, value) for key, value in vars(part).items() if isinstance(value, _FIXED) and key != "training"),
            tuple((key, value.shape) for key, value in part.named_parameters(recurse=False)),
        )
        for name, part in module.named_modules()
    ]
    return tuple(parts)


_FIXED = (int, str, tuple)
"""Attributes that a graph is valid for one value of."""

_SHARES = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 5)
"""Whether the weights of a module are inputs of a graph; before, a graph held those of one module."""


def _copy(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    """The same function with code of its own, by which PyTorch keeps and counts graphs."""
    code = function.__code__.replace(co_name=f"{function.__name__}_{number}")
    return types.FunctionType(code, function.__globals__, code.co_name, function.__defaults__, function.__closure__)
