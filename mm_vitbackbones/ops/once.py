"""Autograd functions with little work around them: in a step on a GPU they run hundreds of times."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import function


def once_differentiable(backward: Callable[..., Any]) -> Any:
    """PyTorch's decorator of that name, without its work where nobody asks for a gradient of the gradients: it costs as
    much as a launch, and is called in each function of each backward pass. A function of which this one is a part, see
    ``ops.chained``, calls ``unchecked``."""
    strict = function.once_differentiable(backward)

    @functools.wraps(backward)
    def either(ctx: Any, *grads: Any) -> Any:
        return strict(ctx, *grads) if torch.is_grad_enabled() else backward(ctx, *grads)

    cast(Any, either).unchecked = backward
    return either


def typed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.to(dtype)``, which takes as long as a launch even where nothing is to be done."""
    return x if x.dtype == dtype else x.to(dtype)


@functools.cache
def direct(kind: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``apply`` of an autograd function for eager mode, without what PyTorch does in Python before it for function
    transforms, and before its backward: together as much as three launches."""
    made: Any = kind
    made._backward_cls.apply = made.backward
    return super(torch.autograd.Function, made).apply
