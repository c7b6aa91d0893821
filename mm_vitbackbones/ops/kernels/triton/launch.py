"""Starting a Triton kernel with little work on the host.

Triton looks at each argument of each launch again, to find the compiled kernel that fits. In eager mode that takes
longer than many of our kernels run. Here the kernel is looked up by what our own arguments can differ in, and started
directly.
"""

# mypy: ignore-errors

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

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
        if index is not None and index != torch.cuda.current_device():
            with torch.cuda.device(index):
                return self(grid, tensors, numbers, constants, num_warps, maxnreg)
        pointers = [tensor.data_ptr() for tensor in tensors]
        types = [tensor.dtype for tensor in tensors]
        key = index, num_warps, maxnreg, constants, *types, *[pointer & 15 == 0 for pointer in pointers]
        usual = max(numbers) <= LARGEST_INT32
        compiled = self.compiled.get(key) if usual else None
        if compiled is not None:
            compiled[grid](*pointers, *numbers, *constants)
            return None
        compiled = self.function[grid](*tensors, *numbers, *constants, num_warps=num_warps, maxnreg=maxnreg)
        if DIRECT and usual and hasattr(compiled, "function"):  # the interpreter returns nothing
            self.compiled[key] = compiled
        return None
