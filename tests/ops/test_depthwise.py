"""Depthwise convolutions in one pass: equal to PyTorch's, and used only where a module may be left out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.attachments import MODES, difference, random_network, run, run_plain
from mm_vitbackbones.layers import ChannelsLastConv2d
from mm_vitbackbones.measuring import OperatorCount
from mm_vitbackbones.ops import context, depthwise, memory, onednn, residual

SIDES = {"gelu": [3], "add": [3], "split": [3, 5, 7]}
"""The windows of each use; each has four channels."""


def convs_of(use: str, dtype: torch.dtype = torch.float64, bias: bool = True) -> list[ChannelsLastConv2d]:
    torch.manual_seed(0)
    return [ChannelsLastConv2d(4, 4, k, padding=k // 2, groups=4, bias=bias).to(dtype) for k in SIDES[use]]


def ours(use: str, convs: list[ChannelsLastConv2d], grid: Tensor) -> Tensor:
    if use == "split":
        return depthwise.split(grid, convs, [4] * len(convs))
    return onednn.conv_gelu(grid, convs[0]) if use == "gelu" else residual.add_conv(grid, convs[0])


def pytorchs(use: str, convs: list[ChannelsLastConv2d], grid: Tensor) -> Tensor:
    parts = [
        F.conv2d(part, conv.weight, conv.bias, padding=conv.padding, groups=4)
        for conv, part in zip(convs, grid.permute(0, 3, 1, 2).split(4, dim=1), strict=True)
    ]
    out = torch.cat(parts, dim=1).permute(0, 2, 3, 1)
    return F.gelu(out) if use == "gelu" else grid + out if use == "add" else out


def grid_for(convs: list[ChannelsLastConv2d], dtype: torch.dtype = torch.float64) -> Tensor:
    """A slice of a wider grid."""
    return torch.randn(2, 6, 5, 4 * len(convs) + 3, dtype=dtype)[..., 1:-2]


def with_gradients(function: Callable[[Tensor], Tensor], convs: list[ChannelsLastConv2d], grid: Tensor) -> list[Tensor]:
    grid = grid.detach().requires_grad_()
    out = function(grid)
    parameters = [p for conv in convs for p in conv.parameters()]
    return [out.detach(), *torch.autograd.grad(out.sin().sum(), [grid, *parameters])]


def runs(function: Callable[[], object]) -> bool:
    """Whether the operator runs."""
    with OperatorCount() as count:
        function()
    return "mm_vitbackbones.depthwise" in {name.removesuffix(".default") for name in count.by_name}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("use", SIDES)
def test_results_and_gradients_are_pytorchs(use, bias):
    convs = convs_of(use, bias=bias)
    grid = grid_for(convs)
    expected = with_gradients(lambda x: pytorchs(use, convs, x), convs, grid)
    with context.pretend_device("cuda"):
        assert runs(lambda: ours(use, convs, grid))
        actual = with_gradients(lambda x: ours(use, convs, x), convs, grid)
        with torch.no_grad():
            inference = ours(use, convs, grid)
    for a, b in zip([inference, *actual], [expected[0], *expected], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert inference.is_contiguous()
    assert [g.stride() for g in actual[2:]] == [p.stride() for conv in convs for p in conv.parameters()]


def test_one_of_several_convolutions_may_have_no_bias():
    convs = convs_of("split")
    convs[1].bias = None
    grid = grid_for(convs)
    with context.pretend_device("cuda"):
        assert runs(lambda: ours("split", convs, grid))
        torch.testing.assert_close(ours("split", convs, grid), pytorchs("split", convs, grid))


@pytest.mark.parametrize("use", SIDES)
def test_gradients_of_the_gradients(use):
    convs = convs_of(use)
    grid = grid_for(convs)[:1, :2, :3].requires_grad_()
    with context.pretend_device("cuda"):
        assert torch.autograd.gradgradcheck(lambda x, *_: ours(use, convs, x), (grid, *convs[0].parameters()))


@pytest.mark.parametrize("use", SIDES)
def test_under_autocast_parameters_keep_their_type_and_the_grid_alone_is_kept(use):
    convs = convs_of(use, torch.float32)
    grid = grid_for(convs, torch.float32)
    kept = []
    with (
        context.pretend_device("cuda"),
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x),
    ):
        actual = with_gradients(lambda x: ours(use, convs, x), convs, grid)
    # What is added stays as exact as it was; otherwise a convolution gives autocast's type.
    assert actual[0].dtype == (torch.float32 if use == "add" else torch.bfloat16)
    assert [g.dtype for g in actual[1:]] == [torch.float32] * (1 + 2 * len(convs))
    expected = with_gradients(lambda x: pytorchs(use, convs, x), convs, grid)
    assert difference(actual, expected) < (1e-5 if use == "add" else 0.02)
    parameters = {p.data_ptr() for conv in convs for p in conv.parameters()}
    # The last is kept by the sine of this test.
    others = [x for x in kept if x.data_ptr() not in parameters]
    assert [x.shape for x in others] == [grid.shape] * 2


def test_recipes_take_the_place_of_the_result():
    convs = convs_of("gelu")
    grid = grid_for(convs)
    expected = with_gradients(lambda x: pytorchs("gelu", convs, x), convs, grid)
    with context.pretend_device("cuda"), memory.saving():
        actual = with_gradients(lambda x: ours("gelu", convs, x), convs, grid)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


OTHERS = {
    "stride": dict(stride=2),
    "dilation": dict(dilation=2),
    "padding": dict(padding=0),
    "padding_mode": dict(padding_mode="reflect"),
    "groups": dict(groups=2),
    "window": dict(kernel_size=9, padding=4),
    "not square": dict(kernel_size=(3, 5), padding=(1, 2)),
    "by name": dict(padding="same"),
}


@pytest.mark.parametrize("why", OTHERS)
def test_other_convolutions_are_called(why):
    torch.manual_seed(0)
    conv = ChannelsLastConv2d(4, 4, **dict(kernel_size=3, padding=1, groups=4) | OTHERS[why])
    grid = torch.randn(1, 12, 10, 4)
    with context.pretend_device("cuda"), torch.no_grad():
        assert not runs(lambda: onednn.conv_gelu(grid, conv))
        torch.testing.assert_close(onednn.conv_gelu(grid, conv), F.gelu(conv(grid)))


@pytest.mark.parametrize("use", SIDES)
def test_a_convolution_with_a_hook_is_called(use):
    convs, calls = convs_of(use), []
    convs[-1].register_forward_hook(lambda *_: calls.append(1))
    with context.pretend_device("cuda"):
        assert not runs(lambda: ours(use, convs, grid_for(convs)))
    assert calls == [1]


def test_types_and_sizes_that_do_not_fit_give_the_errors_of_pytorch():
    convs = convs_of("gelu", torch.float32)
    with context.pretend_device("cuda"):
        with pytest.raises(RuntimeError, match="type"):
            onednn.conv_gelu(torch.randn(1, 4, 4, 4, dtype=torch.bfloat16), convs[0])
        with pytest.raises(RuntimeError, match="channels"):
            onednn.conv_gelu(torch.randn(1, 4, 4, 5), convs[0])


@pytest.mark.parametrize("use", SIDES)
def test_a_cpu_does_not_take_this_form(use):
    convs = convs_of(use)
    assert not runs(lambda: ours(use, convs, grid_for(convs)))


NETWORKS = {"pvt_v2": {}, "pvt_v2_linear": {}, "mit": {"with_cp": "all_but_attention"}, "coat": {}, "coat_lite": {}}


@pytest.mark.parametrize("toy", NETWORKS)
def test_networks_and_their_gradients_equal_those_of_a_cpu(toy):
    expected = run_plain(toy, MODES["training"])
    plain, network = random_network(toy), random_network(toy, **NETWORKS[toy])
    expected = run(plain, MODES["training"])
    with context.pretend_device("cuda"):
        assert runs(lambda: run(network, MODES["inference"]))
        narrow = run(network, MODES["bf16"])
        actual = run(network, MODES["training"])
    grads = [[p.grad for p in net.parameters()] for net in (network, plain)]
    assert difference([*actual, *grads[0]], [*expected, *grads[1]]) < MODES["training"].tolerance
    assert difference(narrow, run_plain(toy, MODES["inference"])) < MODES["bf16"].tolerance
