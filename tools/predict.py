"""Predictions for pictures: python tools/predict.py CONFIG CHECKPOINT IMAGE_OR_FOLDER... (--help: the options)."""

from mm_vitbackbones.engine.errors import run
from mm_vitbackbones.engine.predicting import predict

if __name__ == "__main__":
    raise SystemExit(run(predict))
