"""Whether configs run, and what memory it takes: python tools/try_config.py CONFIG... [--size H W] [--images N]."""

from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.cli.dry_run import main

if __name__ == "__main__":
    raise SystemExit(run(main))
