"""Autograd functions with little work around them: in a step on a GPU they run hundreds of times."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor

from mm_vitbackbones.ops import context

TWICE = (
    "trying to differentiate twice a function that was marked with @once_differentiable: what networks of "
    "mm_vitbackbones compute by functions of their own has no gradients of gradients. Take all gradients by "
    "torch.func.grad, vjp or jacrev, not by backward() and torch.autograd.grad: within these, networks compute by "
    "PyTorch's operators. Its attention needs torch.nn.attention.sdpa_kernel(SDPBackend.MATH) for it"
)


def once_differentiable(backward: Callable[..., Any]) -> Any:
    """PyTorch's decorator of that name, without its work where nobody asks for a gradient of the gradients: it costs as
    much as a launch, and is called in each function of each backward pass. A function of which this one is a part, see
    ``ops.chained``, calls ``unchecked``.

    PyTorch's own takes gradients for constants where those that come in are, such as of a sum. Those of our functions
    depend on what they have saved, so that a gradient of them is refused in any case.

    Autocast is off: the types are those of the forward pass, also where ``backward()`` is called under autocast.
    """

    @functools.wraps(backward)
    def either(ctx: Any, *grads: Any) -> Any:
        if not torch.is_grad_enabled():
            return _without_autocast(backward, ctx, *grads) if _has_autocast() else backward(ctx, *grads)
        with torch.no_grad():
            found = _without_autocast(backward, ctx, *grads)
        results = found if isinstance(found, tuple) else (found,)
        refuse: Any = torch._C._functions.DelayedError(TWICE.encode(), len(results))
        refused = refuse(*[None if x is None else x.detach().requires_grad_() for x in results])
        return refused if isinstance(found, tuple) else refused[0] if isinstance(refused, tuple) else refused

    cast(Any, either).unchecked = backward
    return either


_has_autocast: Callable[[], bool] = getattr(
    torch._C,
    "_is_any_autocast_enabled",
    lambda: bool(torch.is_autocast_enabled() or torch.is_autocast_cpu_enabled()),
)


def _without_autocast(backward: Callable[..., Any], ctx: Any, *grads: Any) -> Any:
    device = next((grad.device for grad in grads if grad is not None), None)
    with nullcontext() if device is None else context.autocast_to(device, None):
        return backward(ctx, *grads)


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
