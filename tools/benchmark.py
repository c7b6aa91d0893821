"""Time and memory of our backbones and other implementations: python tools/benchmark.py [--networks ...] [--report].

Peers that are not installed are left out; `make benchmark` installs them.
"""

from benchmarks.report import main

from mm_vitbackbones.cli.arguments import run

if __name__ == "__main__":
    raise SystemExit(run(main))
