"""Memory of a training step in the form for CUDA, against other implementations in the same process.

The sizes are those of the benchmarks on a card, and nothing is computed: see ``helpers.memory.Live``. What it counts is
within 3 % of what a card has measured, for all networks without the head of SegFormer (docs/benchmarks_gpu.md).
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from helpers import as_on_cuda
from helpers.memory import Live, peak_bytes
from mm_vitbackbones.ops import context
from tools.benchmarks.gpu.contenders import BEFORE, CONTENDERS, LIGHT, OURS
from tools.benchmarks.gpu.page import AIMS

pytestmark = [pytest.mark.parity, pytest.mark.slow]
BATCH, SIDE = 16, 512
OF_A_CARD = {"segformer_b0": 1.02}
"""What is added to an aim where a CPU's operators keep less of the others' head than those of a card."""


@pytest.fixture(autouse=True)
def operators_as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_cuda.use(monkeypatch)


def peak(network: nn.Module, ours: bool) -> int:
    image = torch.zeros(BATCH, 3, SIDE, SIDE)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = sum(level.float().mean() for level in network(image))
        loss.backward()  # type: ignore[union-attr]

    with context.pretend_device("cuda") if ours else nullcontext():
        with Live(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            network(image)  # what is made at the first call
        return peak_bytes(step)


@pytest.mark.parametrize("name", AIMS)
def test_a_training_step_holds_no_more_than_is_aimed_at(name: str) -> None:
    found = {}
    for contender in CONTENDERS[name]:
        if contender.name == BEFORE:
            continue
        try:
            network = contender.build()
        except (ImportError, ModuleNotFoundError):
            continue
        network.train()  # mmdet's returns nothing
        found[contender.name] = peak(network, contender.name in (OURS, LIGHT))
    ours, light = found.pop(OURS), found.pop(LIGHT)
    if not found:
        pytest.skip("no other implementation is installed")
    others, aims = min(found.values()), AIMS[name]
    assert ours <= aims.memory * OF_A_CARD.get(name, 1) * others, (ours / others, found)
    if aims.light_memory is not None:
        assert light <= aims.light_memory * others, (light / others, found)
