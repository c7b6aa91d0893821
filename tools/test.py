"""Evaluate a checkpoint on a config's test set: python tools/test.py CONFIG CHECKPOINT (--help lists the options)."""

from mm_vitbackbones.engine.errors import run
from mm_vitbackbones.engine.launching import test

if __name__ == "__main__":
    raise SystemExit(run(test))
