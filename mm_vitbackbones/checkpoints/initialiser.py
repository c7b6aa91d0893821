"""What ``init_cfg=dict(type='Pretrained', checkpoint=...)`` of a backbone or a head of this package does."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from mm_vitbackbones.checkpoints.loading import load_pretrained
from mm_vitbackbones.checkpoints.recognise import HEADS
from mm_vitbackbones.errors import DownloadError
from mm_vitbackbones.registry import WEIGHT_INITIALIZERS


@WEIGHT_INITIALIZERS.register_module()
class Pretrained:
    """Weights of a file, by ``load_pretrained``: strictly, in any known layout.

    Args:
        checkpoint: the name of a published file of the backbone's arch, such as ``"imagenet1k"``, a path or a URL.
        prefix: take the weights whose names begin with it, in a file that has others as well, such as a teacher's.
        map_location: MMEngine's argument; weights are read on the CPU, and go where the module is.
    """

    def __init__(
        self, checkpoint: str | os.PathLike[str] | None = None, prefix: str | None = None, map_location: Any = "cpu"
    ) -> None:
        self.checkpoint = checkpoint
        self.prefix = prefix

    def __call__(self, module: nn.Module) -> None:
        try:
            load_pretrained(module, self.checkpoint, self.prefix)
        except DownloadError as error:
            part = "model.decode_head" if type(module).__name__ in HEADS else "model.backbone"
            raise DownloadError(
                f"{error}; a training takes the file by --cfg-options {part}.init_cfg.checkpoint=FILE, and begins from "
                f"random weights with --cfg-options {part}.init_cfg=None"
            ) from None
