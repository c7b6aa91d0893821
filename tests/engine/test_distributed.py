"""Training in two processes equals training in one: no parameter waits for a gradient that never comes."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from helpers.official import relative_error
from helpers.toys import TOYS

CASES = [(toy, with_cp) for toy in TOYS for with_cp in ("ffn", "block")]
STEPS = 2
"""The second one is where a missing gradient of the first is noticed."""


def build(toy: str, with_cp: str) -> nn.Module:
    torch.manual_seed(0)
    return TOYS[toy](frozen_stages=1, with_cp=with_cp, drop_path_rate=0.0).double().train()


def images() -> Tensor:
    return torch.randn(STEPS, 2, 3, 64, 70, generator=torch.Generator().manual_seed(1)).double()


def train(network: nn.Module, batches: Tensor) -> None:
    """Some steps; the loss is a mean over the images, as gradients are over the processes."""
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.01)
    for batch in batches:
        optimizer.zero_grad()
        levels = [level.flatten(1) for level in network(batch)]
        weights = [torch.linspace(-1, 1, level.shape[1], dtype=level.dtype) for level in levels]
        sum((level @ weight).mean() for level, weight in zip(levels, weights, strict=True)).backward()
        optimizer.step()


def work(rank: int, folder: str) -> None:
    """One of two processes, which sees one image of each batch and saves what it has learnt."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")  # as pytest's own: gradients in another memory format than the weight's
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    learnt = {}
    for case in CASES:
        network = nn.parallel.DistributedDataParallel(build(*case), find_unused_parameters=False)
        train(network, images()[:, rank : rank + 1])
        learnt[case] = network.module.state_dict()
    torch.save(learnt, Path(folder, f"{rank}.pth"))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def learnt_by_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(work, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_two_processes_learn_what_one_does(case: tuple[str, str], learnt_by_two: list[dict]) -> None:
    network = build(*case)
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert 0 < len(frozen) < len(start)
    train(network, images())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, start[name]) == (name in frozen), name
        first, second = (learnt[case][name] for learnt in learnt_by_two)
        assert torch.equal(first, second), name
        if name not in frozen:
            assert relative_error(first - start[name], tensor - start[name]) < 1e-9, name
