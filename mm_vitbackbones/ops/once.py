"""Autograd functions with little work around them: in a step on a GPU they run hundreds of times."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd import function


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """PyTorch's decorator of that name, without its work where nobody asks for a gradient of the gradients: it costs as
    much as a launch, and is called in each function of each backward pass."""
    strict = function.once_differentiable(backward)

    @functools.wraps(backward)
    def either(ctx: Any, *grads: Any) -> Any:
        return strict(ctx, *grads) if torch.is_grad_enabled() else backward(ctx, *grads)

    return either


def typed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.to(dtype)``, which takes as long as a launch even where nothing is to be done."""
    return x if x.dtype == dtype else x.to(dtype)


def direct(kind: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``apply`` of an autograd function for eager mode, without what PyTorch does in Python before it for function
    transforms, and before its backward: together as much as three launches."""
    made: Any = kind
    made._backward_cls.apply = made.backward
    return super(torch.autograd.Function, made).apply


class Pending(NamedTuple):
    """A call of an autograd function that is left to what follows, which may take it in as a part of its own."""

    kind: Any
    """The function."""
    inputs: tuple[Any, ...]

    def result(self) -> Tensor:
        return cast(Tensor, direct(self.kind)(*self.inputs))


def finished(x: Tensor | Pending) -> Tensor:
    """A tensor, or the result of the call that gives it."""
    return x.result() if isinstance(x, Pending) else x


class Context:
    """What an autograd function takes in place of PyTorch's context, where another one calls its two parts."""

    saved_tensors: Sequence[Any] = ()
    needs_input_grad: tuple[bool, ...] = ()
    wants_result = True
    """Whether the result of forward is used, and not only what it saves."""

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors

    def set_materialize_grads(self, value: bool) -> None:
        """Does nothing: the caller passes all gradients."""
