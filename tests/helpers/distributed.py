"""A small training, in this process or in two. Spawned processes import what they run: this cannot be a test module."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

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
