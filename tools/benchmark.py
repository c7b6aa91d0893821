"""Time and memory of our backbones beside other implementations: medians over interleaved turns, fp32, eager.

    python tools/benchmark.py [--networks pvt_s pvt_v2_b2] [--turns 7] [--threads 2]

Peers that are not installed are left out. The first line says on what machine, and with what allocator. Each case runs
in a process of its own.
"""

from __future__ import annotations

import argparse
import os

import torch

from mm_vitbackbones.benchmarking import CASES, CASES_OF, CONTENDERS, MODES, machine, measure_apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=CONTENDERS, default=[*CONTENDERS])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=[*MODES])
    parser.add_argument("--turns", type=int, default=7, help="timed turns of each contender (default 7)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: of one thread (--threads 1)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(machine(), flush=True)
    for network in args.networks:
        for mode, size in CASES_OF.get(network, CASES):
            if mode in args.modes:
                for row in measure_apart(network, mode, size, args.turns, args.clock, args.threads):
                    print(row, flush=True)


if __name__ == "__main__":
    main()
