"""Gradients that have no gradient of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mm_vitbackbones.ops.once import once_differentiable


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.detach() ** 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x.detach() * grad


def test_the_gradient_is_the_functions() -> None:
    x = torch.tensor(3.0, requires_grad=True)
    Square.apply(x).backward()
    assert x.grad == 6


def test_a_gradient_of_the_gradient_is_an_error_and_not_a_wrong_number() -> None:
    x = torch.tensor(3.0, requires_grad=True)
    weight = torch.tensor(1.0, requires_grad=True)
    (grad,) = torch.autograd.grad(Square.apply(x), x, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.backward()
