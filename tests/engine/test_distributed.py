"""Training in two processes equals training in one: no parameter waits for a gradient that never comes."""

from __future__ import annotations

import pytest
import torch

from helpers.distributed import CASES, build, images, train, work
from helpers.official import relative_error

pytestmark = pytest.mark.xdist_group("distributed")


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
