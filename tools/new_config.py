"""Write a config that fits your data: python tools/new_config.py --data DIR --task detection --backbone pvt_v2_b2."""

from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.cli.new_config import main

if __name__ == "__main__":
    raise SystemExit(run(main))
