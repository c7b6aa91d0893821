"""Gradients that have no gradient of their own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import function


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """PyTorch's decorator of that name, without its work where nobody asks for a gradient of the gradients: it costs as
    much as a launch, and is called in each function of each backward pass."""
    strict = function.once_differentiable(backward)

    @functools.wraps(backward)
    def either(ctx: Any, *grads: Any) -> Any:
        return strict(ctx, *grads) if torch.is_grad_enabled() else backward(ctx, *grads)

    return either
