"""Operators of training and of inference in the form for CUDA, against other implementations in the same process.

Each operator is at least one launch, and launches bound small steps on a GPU. Views are no launches.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers import as_on_cuda, contenders
from mm_vitbackbones.ops import context
from mm_vitbackbones.ops.kernels import registration
from tools.benchmarks.gpu.contenders import CONTENDERS, LIGHT, OURS

pytestmark = [pytest.mark.parity, pytest.mark.slow]
MOST_OPERATORS, MOST_BYTES = 0.9, 0.85
"""Of the other implementation that has the fewest."""
MOST_BYTES_WITHOUT_KERNELS = {
    "pvt_s": 0.88,
    "pvt_v2_b2": 0.96,
    "mit_b2": 0.93,
    "swin_t": 0.88,
    "coat_lite_s": 0.88,
    "coat_mini": 0.82,
    "pit_s": 0.87,
    "segformer_b0": 0.88,
    "segformer_b2": 0.93,
    "vit_s": 0.86,
    "deit_s_distilled": 0.86,
    "dinov2_s": 0.85,
    "dinov3_s": 0.78,
    "cait_s24": 0.89,
    "xcit_s12_p16": 0.84,
    "mvit_v2_t": 0.86,
}
OF_INFERENCE = {"mvit_v2_t": 1.01}
"""The most operators of inference, where they are more than those of the other that has the fewest."""
MEMORY_ALONE = (
    "_unsafe_view",
    "promote_types",
    "unsafe_split",
    "unsafe_split_with_sizes",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
)


@pytest.fixture(autouse=True)
def operators_as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_cuda.use(monkeypatch)


class Traffic(TorchDispatchMode):
    """Counts operators, except views and those that start nothing, and the bytes that they read and write.

    Args:
        kernels: whether an operator of ours is one; else it counts as the operators that run in its place.
    """

    def __init__(self, kernels: bool = True) -> None:
        super().__init__()
        self.kernels = kernels
        self.operators = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not self.kernels and func.namespace == registration.NAMESPACE:
            with self:
                return registration.references[name](*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        if not func.is_view and name not in MEMORY_ALONE:
            others = [x for x in (kwargs or {}).values() if x is not out]  # `out` is written alone
            tensors = [x for x in tree_leaves((args, others, out)) if isinstance(x, Tensor)]
            self.operators += 1
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return out


def traffic(network: nn.Module, ours: bool, kernels: bool = True) -> Traffic:
    image = torch.randn(1, 3, 224, 224)
    with context.pretend_device("cuda") if ours else nullcontext(), registration.forced(kernels):
        with torch.no_grad():
            network(image)  # what is made at the first call
        with Traffic(kernels) as count:
            with torch.autocast("cpu", torch.bfloat16):
                levels = network(image)
            sum(level.float().mean() for level in levels).backward()
    return count


def operators_of_inference(network: nn.Module, ours: bool) -> int:
    """In bf16, without autocast."""
    network.train(False)
    network.bfloat16()
    image = torch.randn(1, 3, 224, 224).bfloat16()
    with context.pretend_device("cuda") if ours else nullcontext(), torch.no_grad():
        network(image)
        with Traffic() as count:
            network(image)
    return count.operators


@pytest.mark.parametrize("name", CONTENDERS)
def test_inference_has_no_more_operators_than_other_implementations(name: str) -> None:
    found = {}
    for contender, network in contenders.in_training(name, without=(LIGHT,)):
        try:
            found[contender] = operators_of_inference(network, contender == OURS)
        except RuntimeError:
            assert contender in ("mmdet", "mmseg")  # whose Swin makes its mask in fp32
    ours = found.pop(OURS)
    if not found:
        pytest.skip("no other implementation is installed")
    assert ours <= OF_INFERENCE.get(name, 1.0) * min(found.values()), found


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "operators_of_pytorch"])
@pytest.mark.parametrize("name", CONTENDERS)
def test_a_training_step_has_fewer_operators_and_moves_fewer_bytes_than_other_implementations(
    name: str, kernels: bool
) -> None:
    networks = contenders.in_training(name, without=(LIGHT,))
    found = {contender: traffic(network, contender == OURS, kernels) for contender, network in networks}
    ours = found.pop(OURS)
    if not found:
        pytest.skip("no other implementation is installed")
    others = {other: (count.operators, count.bytes) for other, count in found.items()}
    most = MOST_BYTES if kernels else MOST_BYTES_WITHOUT_KERNELS[name]
    assert ours.operators <= MOST_OPERATORS * min(operators for operators, _ in others.values()), others
    assert ours.bytes <= most * min(size for _, size in others.values()), others
