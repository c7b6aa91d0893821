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
    with pytest.raises(RuntimeError, match=r"once_differentiable.*torch\.func"):
        grad.backward()


def test_it_is_one_also_where_the_gradient_that_comes_in_is_constant(function: Any) -> None:
    # PyTorch's own decorator takes the result for a constant then, and a sum with others gets a part of its gradient.
    x = torch.tensor(3.0, requires_grad=True)
    (grad,) = torch.autograd.grad(function(x) + x**3, x, create_graph=True)
    assert grad == 6 + 27
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.backward()


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return x @ y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.saved_tensors[1].mT, None


@pytest.mark.parametrize("create_graph", [False, True])
def test_autocast_around_backward_changes_no_type(create_graph: bool) -> None:
    x, y = torch.rand(3, 4, requires_grad=True), torch.rand(4, 5)
    out = direct(Product)(x, y).sum()
    with torch.autocast("cpu", torch.bfloat16):
        (grad,) = torch.autograd.grad(out, x, create_graph=create_graph)
        assert torch.is_autocast_enabled("cpu")
    torch.testing.assert_close(grad.detach(), y.sum(1).expand(3, 4))
