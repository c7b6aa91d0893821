"""Find errors in the data sets of a config: python tools/check_data.py CONFIG [--check-all]."""

from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.cli.check_data import main

if __name__ == "__main__":
    raise SystemExit(run(main))
