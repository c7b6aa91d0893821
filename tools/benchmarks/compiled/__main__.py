"""Kernels and bytes of a compiled training step: ``python -m tools.benchmarks.compiled NETWORK IMPLEMENTATION ...``.

PyTorch's compiler makes the forward and the backward graph of fake CUDA tensors, and plans their kernels; nothing is
computed. It needs g++ and Triton, and no card. Each implementation runs in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


def build(folder: Path) -> Path:
    """The library that stands for a card. It is loaded before PyTorch's own, two functions of which it replaces."""
    import torch

    home, library = Path(torch.__file__).parent, folder / "card.so"
    flags = ["-shared", "-fPIC", "-O1", "-std=c++20", f"-I{home / 'include'}", f"-L{home / 'lib'}"]
    links = ["-ltorch_cpu", "-lc10", f"-Wl,-rpath,{home / 'lib'}"]
    subprocess.run(["g++", *flags, str(HERE / "card.cpp"), "-o", str(library), *links], check=True)
    return library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", help="of tools/benchmarks/gpu/contenders.py")
    parser.add_argument("names", nargs="+", metavar="implementation", help="such as ours or timm")
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    print("network | implementation | kernels | calls | GiB", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"MM_CARD": str(build(Path(folder)))}
        for name in args.names:
            command = [sys.executable, "-c", RUN, args.network, name, str(args.side), str(args.batch)]
            subprocess.run(command, env=environment, check=False)


RUN = """
import ctypes, os, sys
ctypes.CDLL(os.environ["MM_CARD"], mode=ctypes.RTLD_GLOBAL)
from tools.benchmarks.compiled.counting import run
run(*sys.argv[1:])
"""

if __name__ == "__main__":
    main()
