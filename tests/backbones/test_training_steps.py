"""Steps of training on CUDA, in the orders that people take them: gradients are those of one plain step each."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from helpers.agreement import build, gradient_error, image, loss_of
from helpers.toys import TOYS
from mm_vitbackbones.ops import context, memory, narrow

each_toy = pytest.mark.parametrize("toy", TOYS)


@pytest.fixture(autouse=True)
def on_cuda() -> Iterator[None]:
    with context.pretend_device("cuda"):
        yield


def network_of(toy: str) -> nn.Module:
    return build(toy, with_cp="all_but_attention").train()


def after(network: nn.Module, x: Tensor, step: Callable[[Tensor], object]) -> list[Tensor | None]:
    """The gradients of the image and of the parameters after a step."""
    network.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_()
    step(x)
    return [x.grad, *(p.grad for p in network.parameters())]


def plain_step(network: Callable[[Tensor], Sequence[Tensor]], x: Tensor) -> None:
    loss_of(network(x)).backward()


@each_toy
def test_gradients_of_several_passes_add_up(toy: str) -> None:
    network, x = network_of(toy), image(33, 40)
    twice = [2 * grad for grad in after(network, x, partial(plain_step, network))]

    def one_graph_twice(x: Tensor) -> None:
        loss = loss_of(network(x))
        loss.backward(retain_graph=True)
        loss.backward()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()

    def two_graphs(x: Tensor) -> None:
        first, second = loss_of(network(x)), loss_of(network(x))
        second.backward()
        first.backward()

    def one_sum(x: Tensor) -> None:
        (loss_of(network(x)) + loss_of(network(x))).backward()

    for step in (one_graph_twice, two_graphs, one_sum):
        assert gradient_error(after(network, x, step), twice) < 1e-5


@each_toy
def test_parameters_that_are_frozen_at_random_have_no_gradient_and_the_others_theirs(toy: str) -> None:
    network, x = network_of(toy), image(33, 40)
    expected = after(network, x, partial(plain_step, network))
    for seed in range(2):
        trained = torch.rand(len(expected) - 1, generator=torch.Generator().manual_seed(seed)) < 0.5
        for p, trains in zip(network.parameters(), trained, strict=True):
            p.requires_grad_(bool(trains))
        _, *found = after(network, x, partial(plain_step, network))
        assert [grad is not None for grad in found] == trained.tolist()
        pairs = [(x, x), *((f, e) for f, e in zip(found, expected[1:], strict=True) if f is not None)]
        assert gradient_error(*zip(*pairs, strict=True)) < 1e-5
    network.requires_grad_(False)
    wanted = x.clone().requires_grad_()
    (of_image,) = torch.autograd.grad(loss_of(network(wanted)), wanted)
    assert gradient_error([of_image, x], [expected[0], x]) < 1e-5


@each_toy
def test_checkpoints_and_hooks_of_the_user_around_a_network_change_no_gradient(toy: str) -> None:
    network, x = network_of(toy), image(33, 40)
    expected = after(network, x, partial(plain_step, network))

    def offloaded(x: Tensor) -> None:
        with save_on_cpu():
            loss = loss_of(network(x))
        loss.backward()

    steps = [offloaded]
    steps += [partial(plain_step, partial(checkpoint, network, use_reentrant=way)) for way in (False, True)]
    for step in steps:
        assert gradient_error(after(network, x, step), expected) < 1e-5


@each_toy
def test_a_pass_that_was_ended_by_an_error_and_one_in_another_thread_change_no_gradient(toy: str) -> None:
    network, other, x = network_of(toy), network_of(toy), image(33, 40)
    expected = after(network, x, partial(plain_step, network))

    def refuse(*_: object) -> None:
        raise InterruptedError

    def elsewhere() -> list[Tensor | None]:
        with context.pretend_device("cuda"):
            return after(other, x, partial(plain_step, other))

    for module in [*network.modules()][3::7]:
        hook = module.register_forward_hook(refuse)
        try:
            with torch.autocast("cpu", torch.bfloat16):
                network(x)
        except InterruptedError:
            pass
        hook.remove()
        state = memory.state
        assert (state.recipes, state.inside_larger, state.again, state.policy) == (None, False, False, memory.USUAL)
        assert narrow._local.copies is None
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        there = thread.submit(elsewhere)
        here = after(network, x, partial(plain_step, network))
        assert gradient_error(there.result(), expected) < 1e-5
    assert gradient_error(here, expected) < 1e-5
