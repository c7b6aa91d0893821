"""Turn data of other programs into the library's form: python tools/convert_dataset.py SOURCE OUT."""

from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.cli.convert_dataset import main

if __name__ == "__main__":
    raise SystemExit(run(main))
