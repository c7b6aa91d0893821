"""Train the model of a config: python tools/train.py CONFIG (--help lists the options)."""

from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.cli.train import main

if __name__ == "__main__":
    raise SystemExit(run(main))
