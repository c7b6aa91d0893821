from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache, partial
from typing import Any, TypeVar

import torch
from torch.utils import checkpoint as checkpointing
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")

ATTENTION_KERNELS = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
"""What ``F.scaled_dot_product_attention`` comes down to, by device and shapes."""


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

    Compiled graphs are left as they are: the compiler makes this choice by itself. So is what is computed again as a
    part of something larger: it would be computed three times.
    """
    left = torch.compiler.is_compiling() or getattr(_larger, "running", False)
    return function(*inputs) if left else recompute(function, *inputs)


def recompute_but_attention(function: Callable[..., T], *inputs: Any, random: bool = False) -> T:
    """``recompute``, except that the results of PyTorch's attention kernels are kept beside the inputs: they are no
    larger than these, and dear to compute again where there are many tokens.

    PyTorch before 2.4 cannot tell them apart, and computes them again, too.
    """
    make_contexts = attention_kept()
    if make_contexts is None or not torch.is_grad_enabled():
        return recompute(function, *inputs, random=random)

    def run(*inputs: Any) -> T:
        _larger.running = True
        try:
            return function(*inputs)
        finally:
            _larger.running = False

    return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=random, context_fn=make_contexts)


_larger = threading.local()
"""``running``: whether this thread (the backward pass has threads of its own) is inside ``recompute_but_attention``."""


@cache
def attention_kept() -> Callable[[], Any] | None:
    """Makes the contexts in which a function is checkpointed but for its attention kernels; None where PyTorch has
    no such thing."""
    make = getattr(checkpointing, "create_selective_checkpoint_contexts", None)
    kernels = [getattr(torch.ops.aten, name).default for name in ATTENTION_KERNELS if hasattr(torch.ops.aten, name)]
    return partial(make, kernels) if make else None
