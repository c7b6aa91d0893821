"""Focal losses over the sigmoid or the softmax of classes (Lin et al., Focal Loss for Dense Object Detection, 2017).

With q, the probability that a network gives to the right answer, the loss is ``-alpha (1 - q)^gamma log q``. Logarithms
are taken in single precision at least, so that half precision gives neither NaN nor infinity. Nothing waits for a card.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mm_vitbackbones.mmcv_ops.precision import widened


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Each class is a question of its own: is the object of this class?

    Args:
        input: (N, C), logits.
        target: (N,), the class of each row; any other number, such as C, is background: all answers are no.
        weight: (C,), a factor of the rows of each class, or empty; a row of background has the factor 1.
        output: (N, C), receives the losses: ``alpha`` weighs the class of the row, ``1 - alpha`` all others.
    """
    logits = widened(input)
    losses = F.logsigmoid(-logits).mul_(logits.sigmoid().pow_(gamma)).mul_(alpha - 1)
    own, column, known = _own_logit(logits, target)
    right = F.logsigmoid(own) * own.neg().sigmoid().pow(gamma) * -alpha
    _write(output, losses, right, column, known, weight)


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """``grad_input`` (N, C) receives the derivative of each loss by its logit."""
    logits = widened(input)
    slopes = F.logsigmoid(-logits).mul_(logits.neg().sigmoid_()).mul_(gamma)  # gamma (1 - p) log(1 - p)
    probability = logits.sigmoid()
    slopes.sub_(probability).mul_(probability.pow_(gamma)).mul_(alpha - 1)
    own, column, known = _own_logit(logits, target)
    p, rest = own.sigmoid(), own.neg().sigmoid()
    right = (rest - gamma * p * F.logsigmoid(own)) * rest.pow(gamma) * -alpha
    _write(grad_input, slopes, right, column, known, weight)


def _own_logit(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The logit of each row's class (N, 1), its column, and whether the target is a class."""
    classes = logits.shape[1]
    known = ((target >= 0) & (target < classes))[:, None]
    column = target.clamp(0, classes - 1)[:, None]
    return logits.gather(1, column), column, known


def _write(output: Tensor, others: Tensor, right: Tensor, column: Tensor, known: Tensor, weight: Tensor) -> None:
    """``others`` with ``right`` in the column of each row's class, times the weights of the classes."""
    others.scatter_(1, column, torch.where(known, right, others.gather(1, column)))
    if weight.numel():
        others.mul_(torch.where(known, weight.to(others.dtype)[column], 1))
    output.copy_(others)


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """One question with C answers: which class is it?

    Args:
        input: (N, C), probabilities: the caller has taken the softmax.
        target: (N,), the class of each row; a row with a negative number has no loss.
        weight: (C,), a factor of the rows of each class, or empty.
        output: (N,), receives the losses.
    """
    probability, label, known = _own_probability(input, target)
    losses = -alpha * (1 - probability).pow(gamma) * _log(probability)
    if weight.numel():
        losses = losses * weight.to(losses.dtype)[label]
    output.copy_(torch.where(known, losses, 0))


def softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """``grad_input`` (N, C) receives the derivatives of each row's loss by the logits before the softmax.

    ``buff`` (N,) receives the derivative by the logit of the row's class, without the factor ``1 - probability``.
    """
    probability, label, known = _own_probability(input, target)
    rest = (1 - probability).clamp(min=torch.finfo(probability.dtype).tiny)  # finite to the power of gamma - 1
    slope = alpha * (gamma * rest.pow(gamma - 1) * probability * _log(probability) - rest.pow(gamma))
    if weight.numel():
        slope = slope * weight.to(slope.dtype)[label]
    slope = torch.where(known, slope, 0)
    buff.copy_(slope)
    slopes = widened(input) * -slope[:, None]
    grad_input.copy_(slopes.scatter_add_(1, label[:, None], slope[:, None]))


def _own_probability(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The probability of each row's class (N,), that class, and whether the row has one."""
    label = target.clamp(min=0)
    return widened(input.gather(1, label[:, None])[:, 0]), label, target >= 0


def _log(probability: Tensor) -> Tensor:
    return probability.clamp(min=torch.finfo(torch.float32).tiny).log()
