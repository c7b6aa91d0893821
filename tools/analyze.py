"""Write a page on what a model gets wrong: python tools/analyze.py CONFIG CHECKPOINT (--help lists the options)."""

from mm_vitbackbones.cli.analyze import main
from mm_vitbackbones.cli.arguments import run

if __name__ == "__main__":
    raise SystemExit(run(main))
