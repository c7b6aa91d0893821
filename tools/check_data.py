"""What is wrong with the data sets of a config: python tools/check_data.py CONFIG [--check-all]."""

from mm_vitbackbones.engine.errors import run
from mm_vitbackbones.engine.launching import check_data

if __name__ == "__main__":
    raise SystemExit(run(check_data))
