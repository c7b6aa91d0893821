"""Focal losses against their formulas, and in half precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.operators import over_plain, with_gradients

pytestmark = pytest.mark.mmdet
CLASSES = 5
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 3.0, 0.25], dtype=torch.float64)


def case(rows: int = 12, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, CLASSES, generator=generator, dtype=torch.float64) * scale
    return logits, torch.randint(0, CLASSES, (rows,), generator=generator)


def sigmoid_formula(logits: Tensor, target: Tensor, gamma: float, alpha: float, weight: Tensor | None) -> Tensor:
    """-alpha (1 - p)^gamma log p for the class of the row, -(1 - alpha) p^gamma log(1 - p) for all others."""
    p, right = logits.sigmoid(), F.one_hot(target, CLASSES + 1)[:, :CLASSES].bool()
    losses = torch.where(right, -alpha * (1 - p) ** gamma * p.log(), -(1 - alpha) * p**gamma * (1 - p).log())
    factors = torch.ones(CLASSES + 1, dtype=logits.dtype)
    if weight is not None:
        factors[:CLASSES] = weight
    return losses * factors[target][:, None]


@pytest.mark.parametrize("weight", [None, WEIGHTS])
@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.0, 0.5), (1.5, 0.9)])
def test_sigmoid_focal_loss_is_its_formula(gamma, alpha, weight, monkeypatch):
    loss = over_plain("focal_loss", monkeypatch).sigmoid_focal_loss
    logits, target = case()
    target[:3] = CLASSES  # background
    found = with_gradients(lambda x: loss(x, target, gamma, alpha, weight, "none"), logits)
    expected = with_gradients(lambda x: sigmoid_formula(x, target, gamma, alpha, weight), logits)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("weight", [None, WEIGHTS])
@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.0, 0.5), (0.5, 0.9)])
def test_softmax_focal_loss_is_its_formula(gamma, alpha, weight, monkeypatch):
    loss = over_plain("focal_loss", monkeypatch).softmax_focal_loss
    logits, target = case()

    def formula(x: Tensor) -> Tensor:
        log_p = x.log_softmax(1).gather(1, target[:, None])[:, 0]
        losses = -alpha * (1 - log_p.exp()) ** gamma * log_p
        return losses if weight is None else losses * weight[target]

    # mmcv's function multiplies gradients (N, C) by the output's (N,), which only a reduced loss allows.
    found = with_gradients(lambda x: loss(x, target, gamma, alpha, weight, "mean"), logits)
    torch.testing.assert_close(found, with_gradients(lambda x: formula(x).mean(), logits))


def test_softmax_focal_loss_of_a_negative_class_is_zero(monkeypatch):
    loss = over_plain("focal_loss", monkeypatch).softmax_focal_loss
    logits, target = case()
    target[0] = -1
    losses = loss(logits, target, 2.0, 0.25, None, "none")
    assert losses[0] == 0
    assert (losses[1:] > 0).all()
    _, gradient = with_gradients(lambda x: loss(x, target, 2.0, 0.25, None, "sum"), logits)
    assert (gradient[0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_and_near_the_exact_loss(dtype, monkeypatch):
    module = over_plain("focal_loss", monkeypatch)
    logits, target = case(rows=64, scale=12.0)
    logits[0], target[0] = torch.tensor([60.0, -60.0, 30.0, -30.0, 0.0]), 1  # sure, and wrong
    exact = logits.to(dtype).double()
    for loss, target_of in ((module.sigmoid_focal_loss, target), (module.softmax_focal_loss, target)):
        rounded = with_gradients(lambda x, f=loss, t=target_of: f(x, t, 2.0, 0.25, None, "sum"), logits.to(dtype))
        assert all(tensor.isfinite().all() for tensor in rounded)
    found = with_gradients(lambda x: module.sigmoid_focal_loss(x, target, 2.0, 0.25, None, "none"), logits.to(dtype))
    expected = with_gradients(lambda x: sigmoid_formula(x, target, 2.0, 0.25, None), exact)
    finite = expected[0].isfinite()  # the formula itself is not, where p is 1 in double precision
    epsilon = torch.finfo(dtype).eps
    torch.testing.assert_close(found[0].double()[finite], expected[0][finite], rtol=2 * epsilon, atol=1e-6)


@pytest.mark.parametrize("name", ["sigmoid_focal_loss", "softmax_focal_loss"])
def test_a_batch_without_rows_has_no_loss(name, monkeypatch):
    loss = getattr(over_plain("focal_loss", monkeypatch), name)
    output, gradient = with_gradients(
        lambda x: loss(x, torch.zeros(0, dtype=torch.long), 2.0, 0.25, None, "sum"), torch.zeros(0, CLASSES)
    )
    assert output == 0
    assert gradient.shape == (0, CLASSES)
