"""Predictions for images: python tools/predict.py CONFIG CHECKPOINT IMAGE_OR_FOLDER... (--help: the options)."""

from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.cli.predict import main

if __name__ == "__main__":
    raise SystemExit(run(main))
