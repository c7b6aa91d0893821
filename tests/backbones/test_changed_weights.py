"""Weights that are changed after a forward pass, in each way that people know: the next one takes the new ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from helpers.agreement import build, error, gradient_error, image, loss_of
from helpers.toys import different_toys
from mm_vitbackbones.ops import context

KINDS = nn.Linear, nn.LayerNorm, nn.Conv2d


def by_new_parameters(network: nn.Module) -> None:
    for module in network.modules():
        for name, p in [*module.named_parameters(recurse=False)]:
            setattr(module, name, nn.Parameter(1.1 * p.detach()))


def by_data(network: nn.Module) -> None:
    for p in network.parameters():
        p.data = 1.1 * p.data


def by_biases_alone(network: nn.Module) -> None:
    for module in [x for x in network.modules() if isinstance(x, KINDS) and x.bias is not None]:
        bias = module.bias.detach()
        del module.bias
        module.bias = 0.1 + bias


def without_biases(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, KINDS):
            module.bias = None


def tied(network: nn.Module) -> None:
    """One parameter for all linear maps, and for all norms, of a shape."""
    first: dict[object, nn.Module] = {}
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            other = first.setdefault((type(module), module.weight.shape), module)
            module.weight = other.weight


CHANGES = [
    by_new_parameters,
    by_data,
    by_biases_alone,
    without_biases,
    tied,
]


@different_toys
@pytest.mark.parametrize("change", CHANGES)
def test_the_next_pass_takes_the_weights_as_they_are(toy: str, change: Callable[[nn.Module], None]) -> None:
    network, x, maps, found = build(toy, with_cp="all_but_attention").train(), image(33, 40), {}, {}
    with context.pretend_device("cuda"), torch.autocast("cpu", torch.bfloat16):
        loss_of(network(x)).backward()
    change(network)
    for device in ("cpu", "cuda"):
        with context.pretend_device(device):
            network.zero_grad(set_to_none=True)
            with torch.no_grad():
                maps[device] = network.eval()(x)
            image_of_device = x.clone().requires_grad_()
            loss_of(network.train()(image_of_device)).backward()
            parameters = [p.grad for p in network.parameters() if p.grad is not None]
            found[device] = [image_of_device.grad, *parameters]
    assert error(maps["cuda"], maps["cpu"]) < 1e-5
    assert gradient_error(found["cuda"], found["cpu"]) < 1e-5
