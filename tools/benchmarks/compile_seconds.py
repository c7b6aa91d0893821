"""Seconds until the blocks of each family are compiled: ``python -m tools.benchmarks.compile_seconds``.

A training step at two image sizes: graphs for the first size, then for any size. A step without compilation is left out
of the seconds. PyTorch's cache of generated code is not used.
"""

from __future__ import annotations

import argparse
import os
import platform
import time

import torch

from mm_vitbackbones import build_backbone

NETWORKS = ("pvt_small", "pvt_v2_b2", "mit_b2", "swin_tiny", "coat_lite_small", "coat_mini", "pit_s")
SIZES = ((224, 256), (256, 320))


def seconds(device: torch.device, size: tuple[int, int], network: torch.nn.Module) -> float:
    """Of a training step."""
    image = torch.randn(1, 3, *size, device=device)
    start = time.perf_counter()
    sum(level.mean() for level in network(image)).backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    args = parser.parse_args()
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    machine = torch.cuda.get_device_name() if args.device.type == "cuda" else platform.processor() or platform.machine()
    print(f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| network | first size, s | any size, s |\n| --- | --- | --- |")
    for name in args.networks:
        torch._dynamo.reset()
        network = build_backbone(name).to(args.device).train()
        plain = [seconds(args.device, size, network) for size in SIZES]
        if not network.compile_blocks(backend=args.backend):
            return
        compiled = [seconds(args.device, size, network) for size in SIZES]
        first, second = (max(a - b, 0) for a, b in zip(compiled, plain, strict=True))
        print(f"| {name} | {first:.1f} | {second:.1f} |", flush=True)


if __name__ == "__main__":
    main()
