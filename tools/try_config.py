"""Whether configs run, and what memory it takes: python tools/try_config.py CONFIG... [--size H W] [--images N]."""

from mm_vitbackbones.engine.errors import run
from mm_vitbackbones.engine.trying import main

if __name__ == "__main__":
    raise SystemExit(run(main))
