"""Parameters, multiply-adds and levels: python tools/describe.py CONFIG|BACKBONE [--arch ARCH] [--size H W]."""

from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.cli.describe import main

if __name__ == "__main__":
    raise SystemExit(run(main))
