"""Put a small data set under data/: python tools/prepare_data.py trees|mini (no benchmark, either of them)."""

from mm_vitbackbones.datasets.preparing import prepare
from mm_vitbackbones.engine.errors import run

if __name__ == "__main__":
    raise SystemExit(run(prepare))
