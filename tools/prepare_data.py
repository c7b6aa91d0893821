"""Put a small data set under data/: python tools/prepare_data.py trees|mini (no benchmark, either of them)."""

from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.cli.prepare_data import main

if __name__ == "__main__":
    raise SystemExit(run(main))
