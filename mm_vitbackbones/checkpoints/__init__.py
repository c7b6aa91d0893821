"""Checkpoints: read without running what is in them, recognised by their keys, loaded whole or not at all."""

from mm_vitbackbones.checkpoints.converting import Conversion, Merge, convert_checkpoint, merge_checkpoint
from mm_vitbackbones.checkpoints.loading import LoadReport, layout_of, load_pretrained
from mm_vitbackbones.checkpoints.reading import read_checkpoint
from mm_vitbackbones.errors import CheckpointError, CheckpointMismatch, UnsafeCheckpointError

__all__ = [
    "CheckpointError",
    "CheckpointMismatch",
    "Conversion",
    "LoadReport",
    "Merge",
    "UnsafeCheckpointError",
    "convert_checkpoint",
    "layout_of",
    "load_pretrained",
    "merge_checkpoint",
    "read_checkpoint",
]
