"""Make docs/model_zoo.md and the metafiles of the configs: python tools/make_model_zoo.py [--check]."""

from mm_vitbackbones.engine.errors import run
from mm_vitbackbones.zoo import main

if __name__ == "__main__":
    raise SystemExit(run(main))
