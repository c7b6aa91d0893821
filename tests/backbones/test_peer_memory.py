"""Memory of a training step in the form for CUDA, against other implementations in the same process.

The sizes are those of the benchmarks on a card, and nothing is computed: see ``helpers.memory.Live``. Compared with
what an H200 has measured (docs/benchmarks_gpu.md), it counts 0 to 1 % less of our encoders (11 % of DINOv3), 3 % more
of the leanest other Swin and 1 to 22 % less of the leanest others, and a quarter less with SegFormer's head.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from helpers import as_on_cuda, contenders
from helpers.memory import Live, peak_bytes
from mm_vitbackbones.ops import context
from tools.benchmarks.gpu.contenders import LIGHT, OURS
from tools.benchmarks.gpu.page import AIMS

pytestmark = [pytest.mark.parity, pytest.mark.slow]
SIZES = ((16, 512, 512), (2, 800, 1344))
"""Batch, height and width."""
OF_A_CARD = {"segformer_b0": 1.02, "segformer_b2": 1.01}
"""What an aim is multiplied by. On a card the others' head keeps more than a CPU's operators do: 48 % are measured."""


@pytest.fixture(autouse=True)
def operators_as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_cuda.use(monkeypatch)


def peak(network: nn.Module, ours: bool, size: tuple[int, int, int]) -> int:
    batch, height, width = size
    image = torch.zeros(batch, 3, height, width)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = sum(level.float().mean() for level in network(image))
        loss.backward()  # type: ignore[union-attr]

    with context.pretend_device("cuda") if ours else nullcontext():
        with Live(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            network(image)  # what is made at the first call
        return peak_bytes(step)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", AIMS)
def test_a_training_step_holds_no_more_than_is_aimed_at(name: str, size: tuple[int, int, int]) -> None:
    found = {}
    for contender, network in contenders.in_training(name):
        try:
            found[contender] = peak(network, contender in (OURS, LIGHT), size)
        except RuntimeError:
            assert contender == "transformers"  # whose PVT takes images of one size
    ours, light = found.pop(OURS), found.pop(LIGHT)
    if not found:
        pytest.skip("no other implementation is installed")
    others, aims = min(found.values()), AIMS[name]
    assert ours <= aims.memory * OF_A_CARD.get(name, 1) * others, (ours / others, found)
    if aims.light_memory is not None:
        assert light <= aims.light_memory * others, (light / others, found)
