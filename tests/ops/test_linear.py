"""Linear maps and feed-forward networks in training on CUDA, in the form that a CPU can run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.layers import ChannelsLastConv2d, MixFeedForward
from mm_vitbackbones.ops import context, feed_forward, head_maps, linear, narrow

SHAPE = (2, 3, 5, 16)


@pytest.fixture(autouse=True)
def on_cuda() -> Iterator[None]:
    with context.pretend_device("cuda"):
        yield


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, 40), nn.Linear(40, 16)

    def forward(self, x: Tensor) -> Tensor:
        return feed_forward.feed_forward(x, self.fc1, self.fc2)

    def reference(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def gradients(y: Tensor, x: Tensor, network: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(y.float().square().sum(), [x, *network.parameters()], allow_unused=True))


def test_feed_forward_has_the_values_and_gradients_of_its_modules() -> None:
    network, x = Network().double(), torch.randn(SHAPE, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(network(x), network.reference(x))
    torch.testing.assert_close(gradients(network(x), x, network), gradients(network.reference(x), x, network))


def test_linear_has_the_value_and_gradients_of_the_module() -> None:
    layer, x = nn.Linear(16, 24).double(), torch.randn(SHAPE, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(linear.linear(x, layer), layer(x))
    torch.testing.assert_close(gradients(linear.linear(x, layer), x, layer), gradients(layer(x), x, layer))


def assert_as_reference(network: Any, frozen: str) -> None:
    """That a network has the values and gradients of its reference, also if the parameters of this name are frozen."""
    x = torch.randn(SHAPE, dtype=torch.float64, requires_grad=True)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not (frozen and name.startswith(frozen)))
    torch.testing.assert_close(network(x), network.reference(x))
    wanted = [x, *(p for p in network.parameters() if p.requires_grad)]
    ours, theirs = (torch.autograd.grad(y.square().sum(), wanted) for y in (network(x), network.reference(x)))
    torch.testing.assert_close(ours, theirs)


class Heads(nn.Module):
    """Two maps of heads and back, (B, H, W, C) -> (B, H, W, C')."""

    def __init__(self) -> None:
        super().__init__()
        self.split, self.join = nn.Linear(16, 24), nn.Linear(12, 20)

    def forward(self, x: Tensor) -> Tensor:
        heads = head_maps.to_heads(x, self.split, 2, 3)
        assert heads is not None
        out = head_maps.of_heads(heads[0] * heads[1].square(), self.join, x.shape[:-1])
        assert out is not None
        return out

    def reference(self, x: Tensor) -> Tensor:
        first, second = (
            part.flatten(1, 2).unflatten(-1, (3, -1)).transpose(1, 2) for part in self.split(x).chunk(2, -1)
        )
        return self.join((first * second.square()).transpose(1, 2).flatten(2)).view(*x.shape[:-1], -1)


@pytest.mark.parametrize("frozen", ["", "split", "split.bias", "join.weight", "split.weight"])
def test_heads_have_the_values_and_gradients_of_the_modules(frozen: str) -> None:
    assert_as_reference(Heads().double(), frozen)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_in_inference_heads_have_the_values_of_the_modules(kind: torch.dtype) -> None:
    network, x = Heads().to(kind), torch.randn(SHAPE, dtype=kind)
    with torch.no_grad():
        torch.testing.assert_close(network(x), network.reference(x))


def test_heads_are_left_to_a_module_with_a_hook() -> None:
    layer, x = nn.Linear(16, 24), torch.randn(SHAPE)
    layer.register_forward_hook(lambda *_: None)
    assert head_maps.to_heads(x, layer, 2, 3) is None
    assert head_maps.of_heads(torch.randn(2, 4, 5, 4), layer, (2, 5)) is None


def test_under_autocast_results_are_narrow_and_gradients_are_of_the_types_of_their_tensors() -> None:
    network, x = Network(), torch.randn(SHAPE, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = network(x), network.reference(x)
    assert y.dtype == torch.bfloat16
    ours, theirs = gradients(y, x, network), gradients(expected, x, network)
    assert {g.dtype for g in ours} == {torch.float32}
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() <= 2e-2 * other.norm()


@pytest.mark.parametrize("frozen", ["fc1", "fc2", "fc1.bias", "fc2.weight"])
def test_a_frozen_parameter_gets_no_gradient_and_the_others_theirs(frozen: str) -> None:
    network, x = Network().double(), torch.randn(SHAPE, dtype=torch.float64, requires_grad=True)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    network(x).square().sum().backward()
    ours = {name: p.grad for name, p in network.named_parameters()}
    network.zero_grad()
    network.reference(x).square().sum().backward()
    theirs = {name: p.grad for name, p in network.named_parameters()}
    assert [name for name, g in ours.items() if g is None] == [n for n in ours if n.startswith(frozen)]
    torch.testing.assert_close(ours, theirs)


def test_the_activation_is_not_kept() -> None:
    network, x = Network(), torch.randn(SHAPE, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        network(x)
    tokens = x.numel() // x.shape[-1]
    assert sorted(t.shape[-1] for t in kept if len(t) == tokens) == [16, 40]  # x, and the hidden map once


def test_a_module_with_a_hook_is_called() -> None:
    network, seen = Network(), []
    network.fc2.register_forward_hook(lambda _, __, out: seen.append(out))
    network(torch.randn(SHAPE, requires_grad=True))
    assert len(seen) == 1


def test_all_parameters_of_linear_maps_are_cast_in_one_pass_and_only_for_the_duration_of_a_call() -> None:
    network, x = Network(), torch.randn(SHAPE)
    with torch.autocast("cpu", torch.bfloat16), narrow.copies(network, x):
        weight = network.fc1.weight
        copy = narrow.of(weight, torch.bfloat16)
        assert copy.dtype == torch.bfloat16
        torch.testing.assert_close(copy, weight.bfloat16())
        assert narrow.of(weight, torch.bfloat16) is copy
        assert narrow.of(weight, torch.float32) is weight
    assert narrow.of(weight, torch.bfloat16) is not copy


def test_the_next_call_sees_changed_weights_and_parameters_that_came_later() -> None:
    network, x = Network(), torch.randn(SHAPE)
    with torch.autocast("cpu", torch.bfloat16):
        with narrow.copies(network, x):
            pass
        with torch.no_grad():
            network.fc1.weight.zero_()
        network.fc2.weight = nn.Parameter(torch.ones(16, 40))
        with narrow.copies(network, x):
            assert not narrow.of(network.fc1.weight, torch.bfloat16).any()
            assert narrow.of(network.fc2.weight, torch.bfloat16).all()


@pytest.mark.parametrize("frozen", ["", "dwconv", "fc1", "fc2.bias"])
def test_mix_feed_forward_has_the_values_and_gradients_of_its_modules(frozen: str) -> None:
    network, x = MixFeedForward(16, 40), torch.randn(SHAPE, requires_grad=True)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not (frozen and name.startswith(frozen)))
    wanted = [x, *(p for p in network.parameters() if p.requires_grad)]

    def reference() -> Tensor:
        maps = F.conv2d(network.fc1(x).permute(0, 3, 1, 2), network.dwconv.weight, network.dwconv.bias, 1, 1, groups=40)
        return network.fc2(F.gelu(maps.permute(0, 2, 3, 1)))

    y, expected = network(x), reference()
    assert type(y.grad_fn).__name__ == "_MixFeedForwardBackward"
    torch.testing.assert_close(y, expected)
    ours, theirs = (torch.autograd.grad(out.square().sum(), wanted) for out in (y, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 12), (9, 15)], ids=str)
@pytest.mark.parametrize("memory", ["of grids", "of maps"])
def test_a_convolution_of_tiles_has_the_value_and_gradients_of_the_module(memory: str, size: tuple[int, int]) -> None:
    conv, grid = ChannelsLastConv2d(6, 10, 4, 4), torch.randn(2, *size, 6)
    if memory == "of maps":
        grid = grid.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    grid.requires_grad_()
    y, expected = conv(grid), F.conv2d(grid.permute(0, 3, 1, 2), conv.weight, conv.bias, 4).permute(0, 2, 3, 1)
    assert type(y.grad_fn).__name__ == "_LinearOfTilesBackward"
    torch.testing.assert_close(y, expected)
    ours, theirs = (torch.autograd.grad(out.square().sum(), [grid, *conv.parameters()]) for out in (y, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_convolution_of_the_tiles_of_an_image_copies_neither_its_weight_nor_the_gradient() -> None:
    conv, image = ChannelsLastConv2d(3, 10, 4, 4), torch.randn(2, 3, 8, 12)
    y = conv(image.permute(0, 2, 3, 1))
    weights = [x for x in y.grad_fn.saved_tensors if x.shape[0] == 10]
    assert [x.data_ptr() for x in weights] == [conv.weight.data_ptr()]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        y.backward(torch.ones_like(y))
    assert not {"aten::copy_", "aten::clone"} & {event.key for event in profile.key_averages()}


def test_a_convolution_of_a_channel_to_several_has_the_value_and_gradients_of_the_module() -> None:
    conv, grid = ChannelsLastConv2d(6, 12, 3, 2, 1, groups=6), torch.randn(2, 7, 9, 6, requires_grad=True)
    y = conv(grid)
    expected = F.conv2d(grid.permute(0, 3, 1, 2), conv.weight, conv.bias, 2, 1, groups=6).permute(0, 2, 3, 1)
    torch.testing.assert_close(y, expected)
    ours, theirs = (torch.autograd.grad(out.square().sum(), [grid, *conv.parameters()]) for out in (y, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_ones_of_each_length_are_parts_of_one_buffer_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear.Ones, "MOST", 2)
    ones = linear.Ones(torch.ones(1, 8))
    for rows in (3, 8, 5, 3):
        part = ones.of(rows)
        assert part.shape == (1, rows)
        assert part.untyped_storage().data_ptr() == ones.buffer.untyped_storage().data_ptr()
        assert ones.of(rows) is part
        assert len(ones.parts) <= 2
