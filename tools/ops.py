"""mmcv's operators in plain PyTorch, written into mmcv-lite: python tools/ops.py [--install | --remove]."""

from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.cli.ops import main

if __name__ == "__main__":
    raise SystemExit(run(main))
