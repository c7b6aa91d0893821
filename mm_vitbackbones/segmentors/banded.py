"""An encoder-decoder whose predictions never exist as full-size scores of all classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, final

import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor

from mm_vitbackbones.registry import MODELS

BAND_BYTES = 32 * 2**20
"""The size of a band's scores of all classes."""


@final
@MODELS.register_module()
class BandedEncoderDecoder(EncoderDecoder):
    """MMSegmentation's ``EncoderDecoder``. With ``test_cfg=dict(mode='whole', logits=False)`` a prediction holds the
    labels alone: the decode head's scores are resized and compared a band of rows at a time.

    An image of 2048x512 pixels with 150 classes would otherwise take 600 MiB of scores, twice.
    """

    def predict(self, inputs: Tensor, data_samples: Any = None) -> Any:
        """Images (B, 3, H, W) and their samples -> the samples, with ``pred_sem_seg`` of the original size."""
        lean = not self.test_cfg.get("logits", True) and self.test_cfg.get("mode", "whole") == "whole"
        if not lean or data_samples is None or self.out_channels == 1 or any(s.get("flip") for s in data_samples):
            return super().predict(inputs, data_samples)
        scores = self.decode_head(self.extract_feat(inputs))
        for each, sample in zip(scores, data_samples, strict=True):
            labels = torch.cat([band.argmax(0) for band in self.bands(each, tuple(inputs.shape[2:]), sample.metainfo)])
            sample.set_data({"pred_sem_seg": PixelData(data=labels[None])})
        return data_samples

    def bands(self, scores: Tensor, size: tuple[int, ...], meta: Mapping[str, Any]) -> Iterator[Tensor]:
        """Scores (K, h, w) of an input of ``size`` -> those of the original image, (K, rows, W) at a time.

        Equal to resizing them to the input, cutting its padding off and resizing the rest to the original image. Both
        are linear, in rows and in columns separately.
        """
        left, right, top, bottom = meta.get("img_padding_size", meta.get("padding_size", (0, 0, 0, 0)))
        height, width = meta["ori_shape"][:2]
        inside = slice(top, size[0] - bottom), slice(left, size[1] - right)
        rows = self._resize(torch.eye(scores.shape[1], dtype=scores.dtype, device=scores.device), size[0])
        rows = self._resize(rows[:, inside[0]], height).t()  # (H, h): how each row is made of the scores' rows
        per_row = len(scores) * max(width, size[1]) * scores.element_size()
        for band in rows.split(max(1, BAND_BYTES // per_row)):
            used = band.any(0).nonzero().flatten()
            first, last = int(used[0]), int(used[-1]) + 1  # a band is made of few of them
            part = band[:, first:last] @ scores[:, first:last]
            yield self._resize(self._resize(part, size[1])[..., inside[1]], width)

    def _resize(self, lines: Tensor, size: int) -> Tensor:
        """(..., n) -> (..., size), linearly."""
        if lines.shape[-1] == size:
            return lines
        flat = lines.flatten(0, -2)[None]
        return F.interpolate(flat, size=size, mode="linear", align_corners=self.align_corners)[0].unflatten(
            0, lines.shape[:-1]
        )
