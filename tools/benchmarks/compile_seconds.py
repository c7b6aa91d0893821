"""Seconds until the blocks of each family are compiled: ``python -m tools.benchmarks.compile_seconds``.

A training step at two image sizes: graphs for the first size, then for any size. A step without compilation is left out
of the seconds. Each network begins without generated code, also that of the networks before, and one process compiles.
Seconds of one core count no other work of the machine, those of the clock do.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from typing import NamedTuple

import torch
from torch import nn

from mm_vitbackbones import build_backbone

from .running import cpu_name

NETWORKS = (
    "vit_small",
    "dino_v2_small",
    "dino_v3_small",
    "pit_s",
    "coat_lite_small",
    "coat_mini",
    "swin_tiny",
    "pvt_small",
    "pvt_v2_b2",
    "mit_b2",
    "cait_s24",
    "xcit_small_12_p16",
    "mvit_v2_small",
)
"""One of each family, and of CoaT both forms."""
SIZES = ((224, 256), (256, 320))
TABLE = "| network | graphs | first size: s of one core | on the clock | any size: s of one core | on the clock |\n"


class Seconds(NamedTuple):
    core: float
    clock: float

    def over(self, other: Seconds) -> str:
        """What is more than the other, for a table."""
        return " | ".join(f"{max(mine - theirs, 0):.0f}" for mine, theirs in zip(self, other, strict=True))


def now() -> Seconds:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return Seconds(sum(each.ru_utime + each.ru_stime for each in used), time.perf_counter())


def training_step(network: nn.Module, size: tuple[int, int], device: torch.device) -> Seconds:
    image = torch.randn(1, 3, *size, device=device)
    start = now()
    sum(level.mean() for level in network(image)).backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return Seconds(*(after - before for after, before in zip(now(), start, strict=True)))


def row(name: str, device: torch.device, backend: str) -> str | None:
    """A line of the table; None where nothing can be compiled."""
    from torch._inductor import utils

    torch._dynamo.reset()
    fresh = getattr(utils, "fresh_cache", None) or utils.fresh_inductor_cache  # of an older PyTorch
    with fresh():  # in memory and on disk: many pieces of code are equal in several networks
        return _row(name, device, backend)


def _row(name: str, device: torch.device, backend: str) -> str | None:
    from torch._dynamo.utils import counters

    network = build_backbone(name).to(device).train()
    plain = [training_step(network, size, device) for size in SIZES]
    if not network.compile_blocks(backend=backend):
        return None
    counters.clear()
    first, second = (training_step(network, size, device) for size in SIZES)
    graphs = counters["stats"]["unique_graphs"]
    return f"| {name} | {graphs} | {first.over(plain[0])} | {second.over(plain[1])} |"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    args = parser.parse_args(argv)
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    machine = torch.cuda.get_device_name() if args.device.type == "cuda" else cpu_name()
    print(f"{machine}, {torch.get_num_threads()} thread(s), torch {torch.__version__}\n")
    print(f"{TABLE}| --- | --- | --- | --- | --- | --- |", flush=True)
    for name in args.networks:
        if (line := row(name, args.device, args.backend)) is None:
            return
        print(line, flush=True)


if __name__ == "__main__":
    main()
