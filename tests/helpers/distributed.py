"""A small training, in this process or in two (in_two.py)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.model import BaseModel
from torch import Tensor, nn

from helpers import peft
from helpers.toys import TOYS
from mm_vitbackbones.layers import ResidualBlock
from mm_vitbackbones.ops import context

CASES = [(toy, with_cp) for toy in TOYS for with_cp in ("ffn", "block")]
TRUNKS = [(toy, frozen) for toy in ("vit", "vit_windows", "dinov2", "dinov3") for frozen in ("all", "none")]
"""Columnar toys, with ``frozen_stages="all"``, where the pyramid alone trains, and without."""
SHARDED = [("swin", "ffn", "cpu"), ("coat", "block", "cpu"), ("mit", "nothing", "cuda")]
"""Toys, ``with_cp``, and the kind of device whose forms are taken."""
ALL_SHARDED = [(*case, "cpu") for case in CASES] + [(toy, "nothing", "cuda") for toy in TOYS]
BY_STRATEGY = [("swin", "block"), ("cait", "block")]
ORDERS = ("shard compile", "compile shard")
"""In which blocks are sharded and compiled."""
ADAPTED = "adapters"
"""What the results of a network with these are kept under."""
ADAPTERS = dict(rank=2, targets="all")
STEPS, RATE = 2, 0.01
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
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=RATE)
    for batch in batches:
        optimizer.zero_grad()
        loss(network(batch)).backward()
        optimizer.step()


def loss(levels: Sequence[Tensor]) -> Tensor:
    levels = [level.flatten(1) for level in levels]
    weights = [torch.linspace(-1, 1, level.shape[1], dtype=level.dtype) for level in levels]
    return torch.stack([(level @ weight).mean() for level, weight in zip(levels, weights, strict=True)]).sum()


def loader() -> dict[str, Any]:
    """Of the images, one by one for each process, as MMEngine builds one."""
    return dict(
        batch_size=1,
        dataset=[{"image": image} for image in images().flatten(0, 1)],
        sampler=dict(type="DefaultSampler", shuffle=False),
        collate_fn=dict(type="default_collate"),
    )


class Losses(BaseModel):
    """A backbone as MMEngine trains one, with the loss of ``train``."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor, mode: str = "loss") -> dict[str, Tensor]:
        return {"loss": loss(self.backbone(image))}


@contextmanager
def of_two(rank: int, folder: str) -> Iterator[None]:
    """Within it, this process is one of two."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    yield
    torch.distributed.destroy_process_group()


def work(rank: int, folder: str) -> None:
    """One of two processes, which sees one image of each batch and saves what it has learnt."""
    warnings.simplefilter("error")  # as pytest's own: gradients in another memory format than the weight's
    with of_two(rank, folder):
        learnt = {case: learn(build(*case), rank) for case in CASES}
        if peft.IS_THERE:
            with peft.importable():
                learnt[ADAPTED] = learn(build("dinov3", "block", adapters=ADAPTERS), rank)
        torch.save(learnt, Path(folder, f"{rank}.pth"))
        work_in_shards(rank, folder, SHARDED)
        work_by_strategy(rank, folder, BY_STRATEGY)
        work_by_trainer(rank, folder)
        work_on_trunks(rank, folder)


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


def whole_weights(network: nn.Module) -> dict[str, Tensor]:
    """Those of a network whose weights are sharded. All processes ask for them together."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(network, options=StateDictOptions(full_state_dict=True))


def work_in_shards(rank: int, folder: str, cases: Sequence[tuple[str, str, str]]) -> None:
    """Trains networks whose weights are sharded; the first process saves all weights."""
    learnt = {}
    for toy, with_cp, kind in cases:
        network = build(toy, with_cp)
        shard(network)
        with forms(kind):
            train(network, images()[:, rank : rank + 1])
        learnt[toy, with_cp, kind] = whole_weights(network)
    if rank == 0:
        torch.save(learnt, Path(folder, "sharded.pth"))


def work_by_strategy(rank: int, folder: str, cases: Sequence[tuple[str, str]]) -> None:
    """Trains networks by MMEngine's strategy for sharded weights, which saves whole checkpoints."""
    for toy, with_cp in cases:
        train_by_strategy(build(toy, with_cp), rank, strategy_folder(folder, toy, with_cp))


def strategy_folder(folder: str | Path, *case: str) -> Path:
    return Path(folder, "strategy", "-".join(case))


def train_by_strategy(network: nn.Module, rank: int, work_dir: Path) -> None:
    """An epoch of ``STEPS`` steps, after which MMEngine saves ``epoch_1.pth``, with the weights under ``backbone.``."""
    from mmengine.runner import FlexibleRunner
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    os.environ["LOCAL_RANK"] = str(rank)
    blocks = ModuleWrapPolicy({ResidualBlock})
    # Of "full", MMEngine makes settings that copy tensors to the CPU. If they are there, PyTorch frees them too early.
    whole = dict(
        state_dict_type="FULL_STATE_DICT",
        state_dict_config=dict(type="FullStateDictConfig", rank0_only=True),
        optim_state_dict_config=dict(type="FullOptimStateDictConfig", rank0_only=True),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's: of MMEngine's calls of older forms
        runner = FlexibleRunner(
            model=Losses(network),
            work_dir=str(work_dir),
            experiment_name=work_dir.name,
            log_level="ERROR",
            launcher="pytorch",
            strategy=dict(
                type="FSDPStrategy",
                model_wrapper=dict(type="MMFullyShardedDataParallel", device_id="cpu", auto_wrap_policy=blocks),
                state_dict_cfg=whole,
            ),
            train_dataloader=loader(),
            train_cfg=dict(by_epoch=True, max_epochs=1),
            optim_wrapper=dict(optimizer=dict(type="SGD", lr=RATE)),
        )
        runner.train()


def work_by_trainer(rank: int, folder: str) -> None:
    """Trains one network by the runner of our tools, for two epochs: with whole weights, with sharded ones, and the
    second epoch of each from the first of the other. Each process notes how many elements it holds."""
    runs = {
        "whole": (False, None),
        "sharded": (True, None),
        "to_whole": (False, "sharded"),
        "to_sharded": (True, "whole"),
    }
    for name, (sharded, before) in runs.items():
        first = None if before is None else Path(folder, before, "epoch_1.pth")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's of MMEngine's arguments, and MMEngine's of processes
            held = train_by_trainer(build("swin", "ffn"), Path(folder, name), sharded, 2, first)
        torch.save(held, Path(folder, name, f"held_{rank}.pth"))


def train_by_trainer(
    network: nn.Module,
    work_dir: Path,
    sharded: bool,
    epochs: int,
    resumed: Path | None = None,
    launcher: str = "pytorch",
) -> dict[str, int]:
    """Epochs of ``STEPS`` steps, with averages of the weights, an optimizer with a state and a limit of gradients.

    Returns:
        how many elements this process holds of the weights, their averages and the state of the optimizer.
    """
    from mm_vitbackbones.cli.weights import Trainer
    from mm_vitbackbones.engine.saving import averages, optimizers

    os.environ["LOCAL_RANK"] = str(get_rank())
    wrapper: dict[str, Any] = dict(type="mm_vitbackbones.ShardedModel")
    if not sharded:
        wrapper = dict(type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False)
    runner = Trainer(
        model=Losses(network),
        work_dir=str(work_dir),
        experiment_name="-".join(work_dir.parts[-2:]),
        log_level="WARNING",
        launcher=launcher,
        train_dataloader=loader(),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=RATE, momentum=0.5), clip_grad=dict(max_norm=0.1)),
        default_hooks=dict(checkpoint=dict(type="mm_vitbackbones.AtomicCheckpointHook", interval=1)),
        custom_hooks=[dict(type="EMAHook", momentum=0.1)],
        load_from=None if resumed is None else str(resumed),
        resume=resumed is not None,
        cfg=dict(model_wrapper_cfg=wrapper),
    )
    runner.train()
    (optimizer,) = optimizers(runner)
    tensors = {
        "weights": [*runner.model.parameters()],
        "averages": [*averages(runner)[0].parameters()],
        "state": [state["momentum_buffer"] for state in optimizer.state.values()],
    }
    return {name: sum(map(_held, found)) for name, found in tensors.items()}


def _held(tensor: Any) -> int:
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).numel()


def work_by_trainer_in_all(rank: int, folder: str) -> None:
    """One of two processes, for every case, with whole weights and with sharded ones."""
    with of_two(rank, folder):
        for case in CASES:
            for kind in ("whole", "sharded"):
                train_by_trainer(build(*case), Path(folder, "-".join(case), kind), kind == "sharded", 1)


def work_by_strategy_in_all(rank: int, folder: str) -> None:
    """One of two processes, for every case and for a network with adapters."""
    with of_two(rank, folder):
        work_by_strategy(rank, folder, CASES)
        if peft.IS_THERE:
            with peft.importable():
                network = build("dinov3", "block", adapters=ADAPTERS)
                train_by_strategy(network, rank, strategy_folder(folder, ADAPTED))


def work_in_all_shards(rank: int, folder: str) -> None:
    """One of two processes, for every case."""
    with of_two(rank, folder):
        work_in_shards(rank, folder, ALL_SHARDED)


def work_compiled(rank: int, folder: str) -> None:
    """One of two processes, which trains compiled blocks that are computed again, as ``train --compile`` does, and the
    same with sharded weights."""
    from mm_vitbackbones.cli.compiling import compile_backbones

    with of_two(rank, folder):
        network = build("mit", "block")
        wrapped = nn.parallel.DistributedDataParallel(network, find_unused_parameters=False)
        compile_backbones(wrapped, backend="eager", fullgraph=True)
        train(wrapped, images()[:, rank : rank + 1])
        torch.save(network.state_dict(), Path(folder, f"{rank}.pth"))
        learnt = {order: learn_in_compiled_shards(rank, order) for order in ORDERS}
        if rank == 0:
            torch.save(learnt, Path(folder, "sharded.pth"))


def learn_in_compiled_shards(rank: int, order: str) -> dict[str, Tensor]:
    """The weights that blocks learn which are sharded and compiled, one after the other."""
    network, counts = build("mit", "block"), torch._dynamo.utils.counters
    torch._dynamo.reset()
    counts.clear()
    for step in order.split():
        if step == "shard":
            shard(network)
        else:
            network.compile_blocks(backend="eager", fullgraph=True)
    train(network, images()[:, rank : rank + 1])
    assert counts["stats"]["unique_graphs"] > 0
    return whole_weights(network)
