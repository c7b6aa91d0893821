"""Processor time of one step, ours and others': python -m tools.benchmarks.host [--networks ...] [--counts].

A step on a GPU takes at least as long as the processor needs to start its kernels. Here a CPU stands in for that
processor: networks of the published depths with few channels, on a small image, by operators that compute nothing.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from mm_vitbackbones.backbones.base import WITH_CP
from mm_vitbackbones.layers.block import Recomputable, ResidualBlock

from ..gpu.contenders import OURS, prepare_imports
from ..gpu.measuring import inference, training_step
from .as_on_gpu import load_kernels, operators_as_on_gpu, ours_as_on_gpu
from .networks import NETWORKS

MODES = ("training", "inference")
SIDE, BATCH = 64, 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Processor time of one step, on a CPU that stands in for a GPU's host."
    )
    parser.add_argument("--networks", nargs="+", default=[*NETWORKS], choices=[*NETWORKS])
    parser.add_argument("--modes", nargs="+", default=[*MODES], choices=MODES)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5, help="of a turn")
    parser.add_argument("--ours", action="store_true", help="without the others")
    parser.add_argument("--with-cp", default="nothing", choices=["nothing", "all_but_attention", "all"], help="of ours")
    parser.add_argument("--counts", action="store_true", help="functions of Python and operators, in place of times")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    prepare_imports()
    load_kernels()
    if args.counts:
        print("network | what | of | functions of Python | operators")
        for name in args.networks:
            for mode in args.modes:
                print_counts(name, mode)
        return
    print("network | what | ours, ms | us per block | best peer, ms | ours / peer")
    for name in args.networks:
        for mode in args.modes:
            print(row(name, mode, args.turns, args.steps, args.ours, args.with_cp), flush=True)


def row(name: str, mode: str, turns: int, steps: int, alone: bool = False, with_cp: str = "nothing") -> str:
    found = measured(name, mode, turns, steps, alone, with_cp)
    ours, blocks = found.pop(OURS)
    line = f"{name} | {mode} | {ours * 1e3:.1f} | {ours / blocks * 1e6:.0f}"
    if not found:
        return f"{line} | - | -"
    best = min(found, key=lambda other: found[other][0])
    theirs = found[best][0]
    return f"{line} | {best}, {theirs * 1e3:.1f} | {ours / theirs:.2f}"


CLEARING = {"named_modules", "named_parameters", "_named_members", "parameters", "__hash__"}
"""What clears gradients calls."""


def print_counts(name: str, mode: str) -> None:
    """Functions of Python that a step calls, and operators of PyTorch, views and those inside of others included."""
    for contender, build in NETWORKS[name].items():
        try:
            run = prepared(build(), mode)
        except ImportError:
            continue
        functions = 0

        def seen(frame: FrameType, event: str, _: Any) -> None:
            nonlocal functions
            code = frame.f_code
            functions += event == "call" and "as_on_gpu" not in code.co_filename and code.co_name not in CLEARING

        with operators_as_on_gpu(), ours_as_on_gpu() if contender == OURS else nullcontext():
            for _ in range(2):
                run()
            sys.setprofile(seen)
            run()
            sys.setprofile(None)
            with profile(activities=[ProfilerActivity.CPU]) as prof:
                run()
        operators = sum(event.count for event in prof.key_averages() if event.key.startswith("aten::"))
        print(f"{name} | {mode} | {contender} | {functions} | {operators}", flush=True)


def measured(
    name: str, mode: str, turns: int, steps: int, alone: bool = False, with_cp: str = "nothing"
) -> dict[str, tuple[float, int]]:
    """Seconds of one step of each contender, the least over the turns, and its blocks (ours only).

    Args:
        with_cp: what ours computes again in the backward pass.
    """
    runs: dict[str, tuple[Callable[[], Any], Callable[[], Any], int]] = {}
    for contender, build in NETWORKS[name].items():
        if alone and contender != OURS:
            continue
        try:
            network = build()
        except ImportError:
            continue
        for part in network.modules():
            if isinstance(part, Recomputable):
                part.recompute = WITH_CP[with_cp]
        here = ours_as_on_gpu if contender == OURS else nullcontext
        blocks = sum(isinstance(part, ResidualBlock) for part in network.modules())
        runs[contender] = prepared(network, mode), here, blocks
    times: dict[str, list[float]] = {contender: [] for contender in runs}
    with operators_as_on_gpu():
        for turn in range(turns + 1):
            for contender, (run, here, _) in runs.items():
                with here():
                    seconds = timed(run, steps)
                if turn:  # the first one warms up
                    times[contender].append(seconds)
    return {contender: (min(times[contender]), blocks) for contender, (_, _, blocks) in runs.items()}


def prepared(network: nn.Module, mode: str) -> Callable[[], Any]:
    image: Tensor = torch.randn(BATCH, 3, SIDE, SIDE)
    if mode == "training":
        return training_step(network.train(), image)
    return inference(network.eval().to(torch.bfloat16), image.to(torch.bfloat16))


def timed(run: Callable[[], Any], steps: int) -> float:
    """Processor time of one step, in seconds, without the collector of cyclic garbage."""
    run()
    gc.collect()
    gc.disable()
    try:
        start = time.process_time()
        for _ in range(steps):
            run()
        return (time.process_time() - start) / steps
    finally:
        gc.enable()


if __name__ == "__main__":
    main()
