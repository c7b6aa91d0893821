"""Arithmetic of sizes that an export keeps open, so that one graph serves images of every size.

A size is an integer, or in an export a symbol. Where Python or PyTorch asks whether a condition on a symbol holds, the
graph is for the sizes alone with the same answer, and PyTorch refuses it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mm_vitbackbones.ops import context


def ceil_div(length: int, step: int) -> int:
    """ceil(length / step) of positive integers. Not by -(-length // step): ONNX rounds a quotient towards zero."""
    return (length + step - 1) // step


def lack(length: int, step: int) -> int:
    """How much a length lacks to be a multiple of ``step``."""
    return ceil_div(length, step) * step - length


def same_size(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two sizes are equal; in an export, whether they are for every size of an image."""
    if not context.is_exporting():
        return tuple(one) == tuple(other)
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return all(statically_known_true(a == b) for a, b in zip(one, other, strict=True))


def are_known(*sizes: int) -> bool:
    """Whether sizes are numbers in the graph that ``torch.compile`` makes: the graph is for them alone."""
    from torch.fx.experimental import symbolic_shapes

    known = getattr(symbolic_shapes, "has_static_value", None)
    return known is not None and all(known(size) for size in sizes)


def in_order(view: Tensor) -> Tensor:
    """The same tensor; in an export in memory of its own, in order. There PyTorch would ask whether a side is 1, to
    find out what memory a view describes and whether sides can be joined."""
    return view.clone(memory_format=torch.contiguous_format) if context.is_exporting() else view


def first_cells(grid: Tensor, height: int, width: int) -> Tensor:
    """The first rows and columns of a grid (B, H, W, ...) that has at least as many. In an export a slice would ask
    whether it has."""
    if not context.is_exporting():
        return grid[:, :height, :width]
    rows, columns = (torch.arange(count, device=grid.device) for count in (height, width))
    return grid.index_select(1, rows).index_select(2, columns)
