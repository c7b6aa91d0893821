"""Every family in its forms for CUDA, which a CPU computes as well: equal to its own forms."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._decomp.decompositions import _upsample_linear_vec

from helpers.agreement import build, deterministic, error, gradient_error, gradients, image, infer
from helpers.toys import TOYS
from mm_vitbackbones.measuring import OperatorCount
from mm_vitbackbones.ops import context
from mm_vitbackbones.ops.kernels import registration
from tools.benchmarks.host.as_on_gpu import kernels_on_cpu

each_toy = pytest.mark.parametrize("toy", TOYS)
with_and_without_kernels = pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "operators_of_pytorch"])


@contextmanager
def on_cuda(kernels: bool = True) -> Iterator[None]:
    """Within it, networks take their forms for CUDA.

    Args:
        kernels: whether those of this package would run, as by default on the cards where they were measured.
    """
    with context.pretend_device("cuda"), registration.forced(kernels):
        yield


@each_toy
@with_and_without_kernels
def test_maps_and_gradients_are_those_of_a_cpu(toy: str, kernels: bool) -> None:
    network = build(toy)
    maps, expected = infer(network, image()), gradients(network, image())
    with on_cuda(kernels):
        found = infer(network, image())
        assert error(found, maps) < 1e-5
        assert gradient_error(gradients(network, image()), expected) < 1e-5
    assert [m.stride() for m in found] == [m.stride() for m in maps]


@each_toy
def test_a_device_without_forms_of_its_own_computes_the_same(toy: str) -> None:
    network = build(toy)
    maps, expected = infer(network, image()), gradients(network, image())
    with context.pretend_device("mps"):
        assert error(infer(network, image()), maps) < 1e-5
        assert gradient_error(gradients(network, image()), expected) < 1e-5


@each_toy
@with_and_without_kernels
@pytest.mark.parametrize("form", ["all_but_attention", "all"])
def test_computing_again_changes_no_gradient(toy: str, form: str, kernels: bool) -> None:
    with on_cuda(kernels):
        expected = gradients(build(toy, drop_path_rate=0.5), image())
        again = gradients(build(toy, drop_path_rate=0.5, with_cp=form), image())
        assert gradient_error(again, expected) < 1e-5


@each_toy
@with_and_without_kernels
def test_mixed_precision_loses_what_a_cpu_loses(toy: str, kernels: bool) -> None:
    network, dtype = build(toy), torch.bfloat16
    exact, of_exact = infer(network, image()), gradients(network, image())
    maps, lost = infer(network, image(), dtype), gradient_error(gradients(network, image(), dtype), of_exact)
    with on_cuda(kernels):
        found = infer(network, image(), dtype)
        assert gradient_error(gradients(network, image(), dtype), of_exact) < 1.3 * lost
    assert [m.dtype for m in found] == [m.dtype for m in maps]
    assert error(found, exact) < 1.3 * error(maps, exact)


@pytest.mark.parametrize("hooked", [False, True], ids=["plain", "hooked"])
@pytest.mark.parametrize("toy", ["mvit_v2", "swin"])
def test_weights_in_a_narrow_type_that_is_not_that_of_autocast_are_cast_to_it(toy: str, hooked: bool) -> None:
    network, x = build(toy).bfloat16(), image(33, 40)
    if hooked:
        for module in network.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(lambda *_: None)
    with on_cuda():
        maps, found = infer(network, x, torch.float16), gradients(network, x, torch.float16)
        assert {grad.dtype for grad in found[1:]} == {torch.bfloat16}
        network.zero_grad()
        network.float()
        assert error(maps, infer(network, x, torch.float16)) < 1e-2
        assert gradient_error(found, gradients(network, x, torch.float16)) < 2e-2


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("toy", ["swin", "vit"])
def test_autocast_leaves_a_network_in_fp64_alone(toy: str, device: str) -> None:
    network, x = build(toy).double(), image(33, 40).double()
    with context.pretend_device(device):
        found = [*infer(network, x, torch.bfloat16), *gradients(network, x, torch.bfloat16)]
        expected = [*infer(network, x), *gradients(network, x)]
    assert {tensor.dtype for tensor in found} == {torch.float64}
    assert gradient_error(found, expected) < 1e-12


REFUSED = {
    "aten._adaptive_avg_pool2d_backward",
    "aten.cumsum",
    "aten.replication_pad2d_backward",
    "aten.upsample_bicubic2d_backward",
    "aten.upsample_bilinear2d_backward",
    "aten.upsample_linear1d_backward",
    *(f"aten._upsample_{mode}2d_aa_backward" for mode in ("bilinear", "bicubic")),
}
"""Operators that raise on CUDA where a user asks for deterministic ones."""


@each_toy
@with_and_without_kernels
def test_deterministic_training_calls_no_operator_that_raises_on_cuda(
    toy: str, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpolate, expected = F.interpolate, gradients(build(toy), image())

    def as_on_cuda(x: Tensor, *args: Any, mode: str = "nearest", **options: Any) -> Tensor:
        if mode != "bilinear":
            return interpolate(x, *args, mode=mode, **options)
        return _upsample_linear_vec(x, options["size"], options["align_corners"], None)  # what PyTorch calls there

    monkeypatch.setattr(F, "interpolate", as_on_cuda)
    with on_cuda(kernels), deterministic(), OperatorCount() as count:
        found = gradients(build(toy), image())
    assert not {*count.by_name} & REFUSED
    assert gradient_error(found, expected) < 1e-5


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="kernels run on a CPU in Triton's interpreter")
@pytest.mark.parametrize("toy", ["cait", "dinov3", "pit_distilled", "swin", "vit"])
def test_kernels_give_what_their_references_give(toy: str) -> None:
    # Families without depthwise convolutions, whose kernels the interpreter runs in a second.
    pytest.importorskip("triton", reason="the kernels are written in Triton")
    pytest.importorskip("helpers.interpreted")
    from mm_vitbackbones.ops.kernels.triton.launch import Launcher

    starts: list[Launcher] = []
    start = Launcher.__call__

    def counted(self: Launcher, *args: Any) -> None:
        starts.append(self)
        start(self, *args)

    network, x = build(toy), image(37, 45)
    with on_cuda():
        maps, expected = infer(network, x), gradients(network, x)
    with kernels_on_cpu((Launcher, "__call__", counted)):
        assert error(infer(network, x), maps) < 1e-5
        assert gradient_error(gradients(network, x), expected) < 1e-5
    assert len({*starts}) >= 2
