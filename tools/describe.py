"""Parameters, multiply-adds and levels: python tools/describe.py CONFIG|BACKBONE [--arch ARCH] [--size H W]."""

from mm_vitbackbones.describing import main
from mm_vitbackbones.engine.errors import run

if __name__ == "__main__":
    raise SystemExit(run(main))
