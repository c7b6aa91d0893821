"""Starting a Triton kernel with little work on the host.

Triton looks at each argument of each launch again, to find the compiled kernel that fits. In eager mode that takes
longer than many of our kernels run. Here the kernel is looked up by what our own arguments can differ in, and started
directly: by the function that Triton's own launch ends in, where it has the form that we know.
"""

# mypy: ignore-errors

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from operator import attrgetter, or_
from typing import Any

import torch
import triton
from torch import Tensor

_address, _dtype = Tensor.data_ptr, attrgetter("dtype")
LARGEST_INT32 = 2**31 - 1
DIRECT = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 6)
"""Whether a compiled kernel takes its arguments as here; older versions of Triton differ."""


class Launcher:
    """A Triton function whose parameters are tensors, then numbers, then constants.

    Numbers must not be specialised (``do_not_specialize``): the compiled kernel is valid for all their values.
    """

    def __init__(self, function: Any) -> None:
        self.function = function
        self.compiled: dict[Any, Any] = {}
        self.starts: dict[Any, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
        """The function that starts a compiled kernel, and what it takes between the stream and our arguments."""

    def __call__(
        self,
        grid: tuple[int, int, int],
        tensors: tuple[Tensor, ...],
        numbers: tuple[float, ...],
        constants: tuple[Any, ...],
        num_warps: int = 4,
        maxnreg: int | None = None,
    ) -> None:
        """Starts ``grid`` programs on the current stream of the first tensor's device."""
        index = tensors[0].device.index
        if index is not None and index != torch._C._cuda_getDevice():
            with torch.cuda.device(index):
                return self(grid, tensors, numbers, constants, num_warps, maxnreg)
        pointers = [*map(_address, tensors)]
        aligned = reduce(or_, pointers) & 15 == 0 or tuple([pointer & 15 == 0 for pointer in pointers])
        key = index, num_warps, maxnreg, constants, aligned, *map(_dtype, tensors)
        usual = max(numbers) <= LARGEST_INT32
        start = self.starts.get(key) if usual else None
        if start is not None:
            launch, between = start
            launch(*grid, _stream(index), *between, *pointers, *numbers, *constants)
            return None
        compiled = self.compiled.get(key) if usual else None
        if compiled is not None:
            self.starts[key] = launch_and_learn(compiled, grid, _stream(index), (*pointers, *numbers, *constants))
            return None
        compiled = self.function[grid](*tensors, *numbers, *constants, num_warps=num_warps, maxnreg=maxnreg)
        if DIRECT and usual and hasattr(compiled, "function"):  # the interpreter returns nothing
            self.compiled[key] = compiled
        return None


def _stream(index: int) -> int:
    return torch._C._cuda_getCurrentRawStream(index)


def launch_and_learn(
    compiled: Any, grid: tuple[int, int, int], stream: int, arguments: tuple[Any, ...]
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Starts a compiled kernel as Triton does, and returns what ``Launcher.starts`` holds for it.

    Triton passes on what does not depend on the launch (the handle of the kernel, its hooks), if the kernel needs no
    scratch memory. Where the call looks different, all later ones go through Triton as well.
    """
    run, seen = compiled.run, []
    launch = getattr(run, "launch", None)
    scratch = [getattr(run, f"{kind}_scratch_size", None) for kind in ("global", "profile")]
    if launch is None or scratch != [0, 0]:
        compiled[grid](*arguments, stream=stream)
    else:

        def listen(*given: Any) -> None:
            seen.append(given)
            launch(*given)

        run.launch = listen
        try:
            compiled[grid](*arguments, stream=stream)
        finally:
            run.launch = launch
    if seen and seen[0][:4] == (*grid, stream) and seen[0][-len(arguments) :] == arguments:
        return launch, seen[0][4 : -len(arguments)]

    def through_triton(x: int, y: int, z: int, stream: int, *given: Any) -> None:
        compiled[x, y, z](*given, stream=stream)

    return through_triton, ()
