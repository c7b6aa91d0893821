"""oneDNN's operators: equal to the modules that they stand for, and given up where they are not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mm_vitbackbones.backbones import PVTv2
from mm_vitbackbones.layers import ChannelsLastConv2d
from mm_vitbackbones.measuring import OperatorCount
from mm_vitbackbones.ops import context, onednn

FUNCTIONS = {
    "linear": (onednn.linear, lambda: nn.Linear(8, 12), lambda x: x),
    "linear_relu": (onednn.linear_relu, lambda: nn.Linear(8, 12), F.relu),
    "linear_gelu": (onednn.linear_gelu, lambda: nn.Linear(8, 12), F.gelu),
    "conv_gelu": (onednn.conv_gelu, lambda: ChannelsLastConv2d(8, 8, 3, padding=1, groups=8), F.gelu),
}
functions = pytest.mark.parametrize("name", FUNCTIONS)


def fused(run) -> bool:
    """Whether oneDNN's fused operators ran."""
    with OperatorCount() as count:
        run()
    return any(name.startswith("mkldnn.") for name in count.by_name)


@functions
def test_a_fused_operator_equals_its_parts(name):
    torch.manual_seed(0)
    function, make, activation = FUNCTIONS[name]
    layer, grid = make(), torch.randn(2, 9, 7, 8)
    with torch.no_grad():
        assert fused(lambda: function(grid, layer))
        torch.testing.assert_close(function(grid, layer), activation(layer(grid)), rtol=1e-5, atol=1e-6)


@functions
@pytest.mark.parametrize("why", ["gradients", "bf16", "autocast", "fp64", "a hook", "another device", "absent"])
def test_elsewhere_the_modules_are_called(name, why, monkeypatch):
    function, make, activation = FUNCTIONS[name]
    layer, grid, calls = make(), torch.randn(2, 9, 7, 8), []
    dtype = {"bf16": torch.bfloat16, "fp64": torch.float64}.get(why, torch.float32)
    layer, grid = layer.to(dtype), grid.to(dtype)
    if why == "a hook":
        layer.register_forward_hook(lambda *_: calls.append(1))
    if why == "absent":
        monkeypatch.setattr(onednn, "_operators_work", lambda: False)

    def run():
        with (
            torch.set_grad_enabled(why == "gradients"),
            torch.autocast("cpu", torch.bfloat16, enabled=why == "autocast"),
            context.pretend_device("cuda" if why == "another device" else "cpu"),
        ):
            return function(grid, layer)

    assert not fused(run)
    assert calls == [1] * (why == "a hook")
    if why not in ("autocast", "bf16"):
        torch.testing.assert_close(run(), activation(layer(grid)), rtol=1e-5, atol=1e-6)


def test_few_tokens_do_not_pay_for_a_large_weight():
    layer = nn.Linear(512, 1024)
    with torch.no_grad():
        assert not fused(lambda: onednn.linear(torch.randn(1, 100, 512), layer))
        assert fused(lambda: onednn.linear(torch.randn(1, 200, 512), layer))
        small = nn.Linear(8, 8)
        assert not fused(lambda: onednn.linear(torch.randn(1, 1, 8), small))
        assert fused(lambda: onednn.linear(torch.randn(1, 2, 8), small))


def test_networks_equal_without_the_fused_operators(monkeypatch):
    torch.manual_seed(4)
    backbone = PVTv2(arch=dict(depths=(1, 1, 1, 1), dims=(8, 16, 20, 32), linear=True)).eval()
    image = torch.randn(1, 3, 64, 80)
    with torch.no_grad():
        with_them = backbone(image)
        monkeypatch.setattr(onednn, "_operators_work", lambda: False)
        for a, b in zip(with_them, backbone(image), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_fused_operators_are_given_up_when_they_fail(monkeypatch):
    assert onednn._operators_work()
    onednn._operators_work.cache_clear()
    monkeypatch.setattr(onednn, "_linear", lambda x, layer, activation: layer(x))  # another function of that name
    assert not onednn._operators_work()
    onednn._operators_work.cache_clear()

    def gone(grid, conv):
        raise AttributeError("no such operator")

    monkeypatch.undo()
    monkeypatch.setattr(onednn, "_conv_gelu", gone)
    assert not onednn._operators_work()
    monkeypatch.undo()
    onednn._operators_work.cache_clear()
    assert onednn._operators_work()


def test_a_trace_does_not_switch_the_fused_operators_off():
    onednn._operators_work.cache_clear()
    layer, x = nn.Linear(8, 8).requires_grad_(False), torch.randn(30, 8)
    with torch.no_grad():
        torch.jit.trace(lambda x: onednn.linear_gelu(x, layer), x, check_trace=False)
        assert fused(lambda: onednn.linear_gelu(x, layer))


def test_nothing_that_the_first_caller_switched_on_sees_or_changes_the_trial():
    onednn._operators_work.cache_clear()
    seen: list[nn.Module] = []
    hook = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    torch.set_default_dtype(torch.float64)
    try:
        with hook, OperatorCount() as count, torch.device("meta"), torch.autocast("cpu"), torch.inference_mode():
            state = torch.get_rng_state()
            assert onednn._operators_work()
            assert torch.equal(torch.get_rng_state(), state)
    finally:
        torch.set_default_dtype(torch.float32)
        onednn._operators_work.cache_clear()
    assert not seen
    assert not [name for name in count.by_name if name.startswith("mkldnn")]
