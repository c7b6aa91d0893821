"""What a data preprocessor of MMDetection or MMSegmentation does to an image, as operations that can be exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.errors import UserError
from mm_vitbackbones.ops import anysize

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of ImageNet's images, red, green, blue, in 0 to 255: what all published weights of this package expect."""


@dataclass(frozen=True)
class Preprocessing:
    """What happens to an image between its file and a network."""

    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    order: str = "RGB"
    """Of the channels that the network takes; empty for images with other channels."""
    divisor: int = 1
    """The sides are padded, at the bottom and on the right, to multiples of it."""
    pad_value: float = 0.0
    inside: bool = field(default=False)
    """Whether a file takes the values of an image file (0 to 255), and not normalised ones."""


def of_config(preprocessor: Any, inside: bool) -> Preprocessing:
    """What a built data preprocessor does in a test.

    Raises:
        UserError: it pads to a fixed size.
    """
    test = getattr(preprocessor, "test_cfg", None) or {}
    divisor = getattr(preprocessor, "pad_size_divisor", None) or test.get("size_divisor") or 1
    if isinstance(test, Mapping) and test.get("size") is not None:
        raise UserError(
            f"data_preprocessor.test_cfg.size={test['size']!r} pads all images to one size, and a file takes images of "
            "any size: write size_divisor in its place"
        )
    known = bool(getattr(preprocessor, "_enable_normalize", False))
    mean = tuple(preprocessor.mean.flatten().tolist()) if known else (0.0,)
    std = tuple(preprocessor.std.flatten().tolist()) if known else (1.0,)
    # The libraries read images as blue, green, red.
    swapped = bool(
        getattr(preprocessor, "_channel_conversion", False) or getattr(preprocessor, "channel_conversion", 0)
    )
    order = "" if len(mean) > 3 else "RGB" if swapped else "BGR"
    value = getattr(preprocessor, "pad_value", None)
    return Preprocessing(
        mean, std, order, int(divisor), float(getattr(preprocessor, "pad_val", 0) if value is None else value), inside
    )


class Preprocess(nn.Module):
    """Normalises an image, if the file does that, and pads it."""

    mean: Tensor
    std: Tensor

    def __init__(self, how: Preprocessing) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("mean", _channels(how.mean), persistent=False)
        self.register_buffer("std", _channels(how.std), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        if self.how.inside:
            image = (image - self.mean) / self.std
        return self.padded(image, self.how.pad_value)

    def padded(self, image: Tensor, value: float) -> Tensor:
        """An image (B, C, H, W) whose sides are padded to multiples of the divisor."""
        divisor = self.how.divisor
        if divisor > 1:
            rows, columns = (anysize.lack(side, divisor) for side in image.shape[2:])
            image = F.pad(image, (0, columns, 0, rows), value=value)
        return image


def _channels(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
