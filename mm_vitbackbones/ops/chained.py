"""Autograd functions that become one, although they stand in different places: the norm before attention is a block's,
the maps of its heads are the attention's, and the last map is followed by the block's sum.

A call of such a function may be left to what follows, which then calls both as one: PyTorch's work around a function,
forward and backward, takes as long as several launches. What is left is a ``Pending`` or a ``Forked``; ``finished``
makes the call by itself, where nothing follows that could take it in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from mm_vitbackbones.ops.once import direct, once_differentiable


class Pending(NamedTuple):
    """A call of an autograd function that is left to what follows, which may take it in as a part of its own."""

    kind: Any
    """The function."""
    inputs: tuple[Any, ...]

    def result(self) -> Tensor:
        return cast(Tensor, direct(self.kind)(*self.inputs))


class Forked:
    """x and y = f(x), where an autograd function f that gives both has not been called yet, such as a norm. What takes
    y may take this instead, and call f and a function of its own as one.

    Args:
        kind: f.
        inputs: of f, x first.
        dtype: of y, which has the shape of x.
    """

    def __init__(self, kind: Any, inputs: tuple[Any, ...], dtype: torch.dtype) -> None:
        self.x: Tensor = inputs[0]
        """In the end the x that f gives: the gradients of both are added up there."""
        self.kind, self.inputs, self.dtype = kind, inputs, dtype
        self.shape, self.device = self.x.shape, self.x.device

    def result(self) -> Tensor:
        """y."""
        self.x, y = direct(self.kind)(*self.inputs)
        return cast(Tensor, y)


def then(y: Tensor | Forked, kind: Any, *inputs: Any) -> tuple[Tensor, ...]:
    """The results of an autograd function that gives several: of y and these inputs."""
    if not isinstance(y, Forked):
        return cast("tuple[Tensor, ...]", direct(kind)(y, *inputs))
    y.x, *results = _chained((y.kind, len(y.inputs), kind), *y.inputs, *inputs)
    return tuple(results)


def finished(x: Tensor | Pending | Forked) -> Tensor:
    """A tensor, or the result of the call that gives it."""
    return x if isinstance(x, Tensor) else x.result()


class Context:
    """What an autograd function takes in place of PyTorch's context, where another one calls its two parts."""

    saved_tensors: Sequence[Any] = ()
    needs_input_grad: tuple[bool, ...] = ()
    wants_result = True
    """Whether the result of forward is used, and not only what it saves."""
    end = 0
    """In what is saved for all parts of a function, the first place after this one's."""

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors

    def set_materialize_grads(self, value: bool) -> None:
        """Does nothing: the caller passes all gradients."""


def save_for_backward(ctx: Any, *others: Tensor | None) -> None:
    """Saves what the contexts of a function's parts, ``ctx.parts``, have saved, and these others after it."""
    tensors: list[Tensor | None] = []
    for part in ctx.parts:
        tensors += part.saved_tensors
        part.end = len(tensors)
        part.saved_tensors = ()  # PyTorch keeps them, until the backward pass
    ctx.save_for_backward(*tensors, *others)


def saved_parts(ctx: Any) -> tuple[Any, ...]:
    """``ctx.parts`` with what they have saved, and the others."""
    kept, start = ctx.saved_tensors, 0
    for part in ctx.parts:
        part.saved_tensors = kept[start : part.end]
        start = part.end
    return *ctx.parts, kept[start:]


class _Chained(torch.autograd.Function):
    """See ``then``: a function that gives x and y, and one of y that gives one or several tensors."""

    @staticmethod
    def forward(ctx: Any, kinds: tuple[Any, int, Any], *inputs: Any) -> tuple[Tensor, ...]:
        first, count, second = ctx.kinds = kinds
        ctx.parts = of_first, of_second = Context(), Context()
        x, y = first.forward(of_first, *inputs[:count])
        results = second.forward(of_second, y, *inputs[count:])
        save_for_backward(ctx)
        return (x, results) if isinstance(results, Tensor) else (x, *results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_x: Tensor, *grads: Tensor) -> Any:
        first, count, second = ctx.kinds
        (of_first, of_second, _), needed = saved_parts(ctx), ctx.needs_input_grad[1:]
        of_second.needs_input_grad = (any(needed[:count]), *needed[count:])
        of_y, *others = second.backward.unchecked(of_second, *grads)
        of_second.saved_tensors = ()
        of_inputs = first.backward.unchecked(of_first, grad_x, of_y)
        of_first.saved_tensors = ()
        return None, *of_inputs, *others


_chained = direct(_Chained)
