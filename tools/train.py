"""Train the model of a config: python tools/train.py CONFIG (--help lists the options)."""

from mm_vitbackbones.engine.errors import run
from mm_vitbackbones.engine.launching import train

if __name__ == "__main__":
    raise SystemExit(run(train))
