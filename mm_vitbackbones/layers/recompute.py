from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result", Tensor, tuple[Tensor, Tensor])


def recompute(function: Callable[[Tensor], Result], grid: Tensor, random: bool = False) -> Result:
    """``function(grid)``, of which only ``grid`` is kept for the backward pass, where the rest is computed again.

    The second computation stops at the last tensor that the backward pass needs. So where ``function`` ends in a
    linear map, that map is not computed twice. ``random``: whether ``function`` draws random numbers.
    """
    if not torch.is_grad_enabled():
        return function(grid)
    return checkpoint(function, grid, use_reentrant=False, preserve_rng_state=random)


def recompute_cheap(function: Callable[[Tensor], Result], grid: Tensor) -> Result:
    """``recompute`` for a norm or an activation before a linear map: it always pays.

    Compiled graphs are left as they are: the compiler makes this choice by itself.
    """
    return function(grid) if torch.compiler.is_compiling() else recompute(function, grid)
