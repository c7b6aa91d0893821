"""Which places a score rests on: Grad-CAM and score-weighted maps of a level."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def grad_cam(level: Tensor, gradient: Tensor) -> Tensor:
    """Channels weighted by the mean gradient of the score, what is above zero (Selvaraju et al. 2017):
    (C, H, W) twice -> (H, W)."""
    return torch.einsum("c,chw->hw", gradient.mean((1, 2)), level).clamp(min=0)


def score_cam(level: Tensor, image: Tensor, score: Callable[[Tensor], float], most: int) -> Tensor:
    """Channels weighted by the score of the image where each of them is high (Wang et al. 2020): (C, H, W) -> (H, W).

    The image is multiplied by a channel that is stretched from 0 to 1. A normalised image of zeros is one of the mean
    colour, so what is left out is gray. Each channel takes a run of the network. So of many channels those with the
    largest standard deviation are taken.

    Args:
        image: (1, C', H', W').
        score: of such an image.
        most: channels to take.
    """
    chosen = level.flatten(1).std(1, correction=0).argsort(descending=True)[:most]
    scores = []
    for channel in level[chosen]:
        low, high = channel.min(), channel.max()
        mask = (channel - low) / (high - low).clamp(min=1e-12)
        mask = F.interpolate(mask[None, None], size=image.shape[2:], mode="bilinear", align_corners=False)
        scores.append(score(image * mask))
    gains = torch.tensor(scores, dtype=level.dtype, device=level.device) - score(torch.zeros_like(image))
    return torch.einsum("c,chw->hw", gains.softmax(0), level[chosen]).clamp(min=0)
