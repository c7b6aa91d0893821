"""Runs steps of each toy network on fake tensors of CUDA, in eager mode, and prints its name. A program of its own: the
library of ``tools.benchmarks.compiled`` has to be loaded before PyTorch's own."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from helpers.toys import TOYS
from mm_vitbackbones.backbones import Backbone
from mm_vitbackbones.ops import context, covariance, depthwise, kept
from tools.benchmarks.compiled.counting import card, on_card


def pretend() -> None:
    """Fake tensors are taken for real ones, where forms ask for tensors of PyTorch's own class."""
    for module in (context, covariance, depthwise):
        module.Tensor = FakeTensor  # type: ignore[misc,assignment]
    context._WEIGHTS.add(FakeTensor)
    library: Any = torch._C
    kept.is_capturing = library._cuda_isCurrentStreamCapturing = lambda: False
    library._cuda_getCurrentRawStream = lambda index: 0


def functions(result: Tensor) -> set[str]:
    """The names of all autograd functions that a result comes from."""
    nodes: list[Any] = [result.grad_fn]
    for node in nodes:  # which grows
        nodes += [x for x, _ in node.next_functions if x is not None and x not in nodes]
    return {node.name() for node in nodes}


def step(network: Backbone, size: tuple[int, int], dtype: torch.dtype, autocast: torch.dtype | None) -> None:
    """Forward, and backward in training mode."""
    mode, training = FakeTensorMode(), network.training
    on_card(network.to(dtype), mode)
    with card(), mode:
        with torch.autocast("cuda", autocast) if autocast else nullcontext(), torch.set_grad_enabled(training):
            levels = network(torch.empty(2, 3, *size, device="cuda", dtype=dtype))
        assert {level.device.type for level in levels} == {"cuda"}
        if not training:
            assert {level.dtype for level in levels} == {dtype}
            return
        assert any(name.startswith("_") for name in functions(levels[0])), "no function of ours"
        sum(level.float().mean() for level in levels).backward()
        for name, parameter in network.named_parameters():
            grad = parameter.grad
            assert grad is not None, f"no gradient of {name}"
            found, wanted = ((x.device.type, x.dtype, x.shape) for x in (grad, parameter))
            assert found == wanted, f"{name}: {found}, not {wanted}"


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    pretend()
    product, are_wide = torch.mm, []

    def noting(*args: Any, **kwargs: Any) -> Tensor:
        are_wide.append("out_dtype" in kwargs)
        return product(*args, **kwargs)

    torch.mm = noting
    for name, toy in TOYS.items():
        step(toy().train(), (70, 45), torch.float32, torch.bfloat16)
        step(toy().train(), (64, 96), torch.float32, None)
        step(toy().eval(), (70, 45), torch.bfloat16, None)
        print(name, flush=True)
    assert any(are_wide) != context.ROCM, "products of bf16 in fp32 are not for AMD's cards"


main()
