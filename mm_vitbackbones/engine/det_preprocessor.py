"""MMDetection's normalisation, for any number of channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor

from mm_vitbackbones.errors import ArgumentError
from mm_vitbackbones.registry import MODELS


@final
@MODELS.register_module()
class MultichannelDetDataPreprocessor(DetDataPreprocessor):
    """MMDetection's ``DetDataPreprocessor`` with a mean and a std of as many values as images have channels. MMEngine's
    takes one or three.

    Args:
        mean, std: one value for each channel, in the order of the loaded image.
        others: as of ``DetDataPreprocessor``. Channels keep their order, so there is no ``bgr_to_rgb``.

    Raises:
        ArgumentError: mean and std differ in length, a std is not positive, or the order is to be changed.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], **others: Any) -> None:
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise ArgumentError(
                f"data_preprocessor: mean has {len(mean)} values and std {len(std)}: give one of each for each "
                "channel, and std above 0"
            )
        for name in ("bgr_to_rgb", "rgb_to_bgr"):
            if others.pop(name, False):
                raise ArgumentError(f"data_preprocessor: {name}=True takes images of three channels: set it to False")
        super().__init__(**others)
        self._enable_normalize = True
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)
