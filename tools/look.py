"""What a network sees: python tools/look.py CONFIG_OR_ARCH [CHECKPOINT] IMAGE... --show WHAT (--help: the options)."""

from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.cli.look import main

if __name__ == "__main__":
    raise SystemExit(run(main))
