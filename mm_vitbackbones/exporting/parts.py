"""What the files of segmentors and detectors share."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class Features(nn.Module):
    """The backbone of a model and its neck, if it has one: an image to maps."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.neck = model.neck if getattr(model, "with_neck", False) else nn.Identity()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.neck(self.backbone(image)))


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Modules in eval mode; afterwards each part of them is in its own mode again."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Within it, Python does not look for garbage. Nothing of a graph is garbage while it is made, and looking through
    all of it takes a twentieth of the time."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


PROBE = 128
"""Pixels of the image whose maps say what a network has. A multiple of all strides."""


def maps_of_probe(model: Any) -> tuple[Tensor, ...]:
    """What the backbone and the neck of a model make of a small image."""
    channels = getattr(model.backbone, "in_channels", 3)
    with evaluating(model), torch.no_grad():
        return Features(model)(torch.zeros(1, channels, PROBE, PROBE))
