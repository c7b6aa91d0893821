from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recompute(function: Callable[[Tensor], Tensor], grid: Tensor, random: bool = False) -> Tensor:
    """``function(grid)``, of which only ``grid`` is kept for the backward pass, where the rest is computed again.

    The second computation stops at the last tensor that the backward pass needs. So where ``function`` ends in a
    linear map, that map is not computed twice. ``random``: whether ``function`` draws random numbers.
    """
    if not torch.is_grad_enabled():
        return function(grid)
    return checkpoint(function, grid, use_reentrant=False, preserve_rng_state=random)


def recompute_cheap(function: Callable[[Tensor], Tensor], grid: Tensor) -> Tensor:
    """``recompute`` for a norm or an activation before a linear map: it always pays.

    Compiled graphs are left as they are: the compiler makes this choice by itself.
    """
    return function(grid) if torch.compiler.is_compiling() else recompute(function, grid)
