"""A small training, in this process or in two. Spawned processes import what they run: this cannot be a test module."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from helpers import peft
from helpers.toys import TOYS
from mm_vitbackbones.ops import context

CASES = [(toy, with_cp) for toy in TOYS for with_cp in ("ffn", "block")]
TRUNKS = [(toy, frozen) for toy in ("vit", "vit_windows", "dinov2", "dinov3") for frozen in ("all", "none")]
"""Columnar toys, with ``frozen_stages="all"``, where the pyramid alone trains, and without."""
SHARDED = [("swin", "ffn", "cpu"), ("coat", "block", "cpu"), ("mit", "nothing", "cuda")]
"""Toys, ``with_cp``, and the kind of device whose forms are taken."""
ALL_SHARDED = [(*case, "cpu") for case in CASES] + [(toy, "nothing", "cuda") for toy in TOYS]
ADAPTED = "adapters"
"""What the results of a network with these are kept under."""
ADAPTERS = dict(rank=2, targets="all")
STEPS = 2
"""The second one is where a missing gradient of the first is noticed."""


def build(toy: str, with_cp: str, **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    return TOYS[toy](frozen_stages=1, with_cp=with_cp, drop_path_rate=0.0, **arguments).double().train()


def build_trunk(toy: str, frozen: str) -> nn.Module:
    """With the simple pyramid, which trains in any case."""
    torch.manual_seed(0)
    stages = "all" if frozen == "all" else -1
    return TOYS[toy](frozen_stages=stages, pyramid="simple", drop_path_rate=0.0).double().train()


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
    learnt = {case: learn(build(*case), rank) for case in CASES}
    if peft.IS_THERE:
        with peft.importable():
            learnt[ADAPTED] = learn(build("dinov3", "block", adapters=ADAPTERS), rank)
    torch.save(learnt, Path(folder, f"{rank}.pth"))
    work_in_shards(rank, folder, SHARDED)
    work_on_trunks(rank, folder)
    torch.distributed.destroy_process_group()


def learn(network: nn.Module, rank: int) -> dict[str, Tensor]:
    """What a network has learnt in two processes of which this is one."""
    wrapped = nn.parallel.DistributedDataParallel(network, find_unused_parameters=False)
    train(wrapped, images()[:, rank : rank + 1])
    return network.state_dict()


def forms(kind: str) -> AbstractContextManager[Any]:
    """Within it, the forms of this kind of device are taken."""
    return nullcontext() if kind == "cpu" else context.pretend_device(kind)


def work_on_trunks(rank: int, folder: str) -> None:
    """Trains pyramids, with the trunks below them or without, and saves what they have learnt."""
    learnt = {}
    for case in TRUNKS:
        network = nn.parallel.DistributedDataParallel(build_trunk(*case), find_unused_parameters=False)
        train(network, images()[:, rank : rank + 1])
        learnt[case] = network.module.state_dict()
    torch.save(learnt, Path(folder, f"trunks_{rank}.pth"))


def shard(network: Any) -> None:
    """Shards each block, and the rest of the network, over two processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for part in network.parts():
        if part.kind == "block":
            fully_shard(part.modules[0], mesh=mesh)
    fully_shard(network, mesh=mesh)


def work_in_shards(rank: int, folder: str, cases: Sequence[tuple[str, str, str]]) -> None:
    """Trains networks whose weights are sharded; the first process saves all weights."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    learnt = {}
    for toy, with_cp, kind in cases:
        network = build(toy, with_cp)
        shard(network)
        with forms(kind):
            train(network, images()[:, rank : rank + 1])
        learnt[toy, with_cp, kind] = get_model_state_dict(network, options=StateDictOptions(full_state_dict=True))
    if rank == 0:
        torch.save(learnt, Path(folder, "sharded.pth"))


def work_in_all_shards(rank: int, folder: str) -> None:
    """One of two processes, for every case."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    work_in_shards(rank, folder, ALL_SHARDED)
    torch.distributed.destroy_process_group()


def work_compiled(rank: int, folder: str) -> None:
    """One of two processes, which trains compiled blocks that are computed again, as ``train --compile`` does."""
    from mm_vitbackbones.cli.compiling import compile_backbones

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    network = build("mit", "block")
    wrapped = nn.parallel.DistributedDataParallel(network, find_unused_parameters=False)
    compile_backbones(wrapped, backend="eager", fullgraph=True)
    train(wrapped, images()[:, rank : rank + 1])
    torch.save(network.state_dict(), Path(folder, f"{rank}.pth"))
    torch.distributed.destroy_process_group()
