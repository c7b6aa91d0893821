"""What PyTorch lets people do around a training step, with every family: gradients are those of plain modules."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from helpers.agreement import build, gradient_error, image
from helpers.toys import TOYS
from mm_vitbackbones.ops import context

each_toy = pytest.mark.parametrize("toy", TOYS)
FORMS = {"cpu": ("cpu", "nothing"), "cuda-least": ("cuda", "all_but_attention"), "cuda-all": ("cuda", "all")}
"""A device, and what the backward pass computes again."""
each_form = pytest.mark.parametrize(("device", "with_cp"), FORMS.values(), ids=FORMS.keys())


def loss_of(maps: tuple[Tensor, ...]) -> Tensor:
    """It treats no two numbers alike."""
    return sum((m.float().flatten() * torch.linspace(-1, 1, m.numel())).sum() for m in maps)


@each_toy
@each_form
def test_functional_calls_train_the_weights_that_they_are_given(toy: str, device: str, with_cp: str) -> None:
    network, x = build(toy, with_cp=with_cp).train(), image(33, 40)
    other = copy.deepcopy(network)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.1).add_(0.01)
    given = {name: p.detach().clone().requires_grad_() for name, p in other.named_parameters()}
    with context.pretend_device(device):
        loss_of(torch.func.functional_call(network, given, (x,))).backward()
        loss_of(other(x)).backward()
    expected = [x, *(p.grad for p in other.parameters())]
    assert gradient_error([x, *(p.grad for p in given.values())], expected) < 1e-5
    assert all(p.grad is None for p in network.parameters())
