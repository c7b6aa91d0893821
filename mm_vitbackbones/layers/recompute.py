from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


def recompute(function: Callable[..., T], *inputs: Any, random: bool = False) -> T:
    """``function(*inputs)``, of which only the inputs are kept for the backward pass, where the rest is computed again.

    The second computation stops at the last tensor that the backward pass needs. So where ``function`` ends in a
    linear map, that map is not computed twice. ``random``: whether ``function`` draws random numbers.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=random)


def recompute_cheap(function: Callable[..., T], *inputs: Any) -> T:
    """``recompute`` for a norm or an activation before a linear map: it always pays.

    Compiled graphs are left as they are: the compiler makes this choice by itself.
    """
    return function(*inputs) if torch.compiler.is_compiling() else recompute(function, *inputs)
