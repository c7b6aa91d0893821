"""Gradients that have no gradient of their own."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from mm_vitbackbones.ops.once import direct, once_differentiable


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


square = direct(Square)


@pytest.fixture(params=[Square.apply, square], ids=["apply", "direct"])
def function(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_the_gradient_is_the_functions(function: Any) -> None:
    x = torch.tensor(3.0, requires_grad=True)
    function(x).backward()
    assert x.grad == 6


def test_a_direct_call_and_its_backward_have_no_python_of_pytorch_around_them() -> None:
    x, codes = torch.tensor(3.0, requires_grad=True), []
    sys.setprofile(lambda frame, event, _: codes.append(frame.f_code) if event == "call" else None)
    try:
        y = square(x)
        y.backward()
    finally:
        sys.setprofile(None)
    of_functions = [code.co_name for code in codes if code.co_filename == torch.autograd.function.__file__]
    assert of_functions == ["save_for_backward"]


def test_a_gradient_of_the_gradient_is_an_error_and_not_a_wrong_number(function: Any) -> None:
    x = torch.tensor(3.0, requires_grad=True)
    weight = torch.tensor(1.0, requires_grad=True)
    (grad,) = torch.autograd.grad(function(x), x, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.backward()
