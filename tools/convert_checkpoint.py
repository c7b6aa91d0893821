"""Write a checkpoint in another layout: python tools/convert_checkpoint.py IN OUT [--to official|ours|openmmlab]."""

from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.cli.convert_checkpoint import main

if __name__ == "__main__":
    raise SystemExit(run(main))
