"""Evaluate a checkpoint on a config's test set: python tools/test.py CONFIG CHECKPOINT (--help lists the options)."""

from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.cli.test import main

if __name__ == "__main__":
    raise SystemExit(run(main))
