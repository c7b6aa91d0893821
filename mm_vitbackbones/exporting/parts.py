"""What the files of segmentors and detectors share."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mm_vitbackbones.ops import resize


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


class _OpenPooling(TorchFunctionMode):
    """Within it, averages over as many areas of any image are products with the shares of cells in areas: PyTorch's own
    would be those of the traced size."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.adaptive_avg_pool2d:
            return _pooled(*args, **kwargs)
        return function(*args, **kwargs)


def _pooled(input: Tensor, output_size: Any) -> Tensor:
    """``F.adaptive_avg_pool2d``."""
    sides = [*output_size] if isinstance(output_size, (tuple, list)) else [output_size]
    if not all(isinstance(side, int) and side == sides[0] for side in sides) or input.dim() != 4:
        return F.adaptive_avg_pool2d(input, output_size)
    (side, *_) = sides
    if side == 1:
        return input.mean((2, 3), keepdim=True)
    return resize.pooled_to(input.permute(0, 2, 3, 1), side).permute(0, 3, 1, 2)


@contextlib.contextmanager
def open_sizes() -> Iterator[None]:
    """Within it, what MMSegmentation's heads and PyTorch's pooling make of a map's size stays a formula of that size.

    MMSegmentation's ``Upsample``, and ``resize`` for a warning of its own, make Python's integers of sizes: these would
    be those of the traced image.
    """
    wrappers = sys.modules.get("mmseg.models.utils.wrappers")
    with _OpenPooling(), contextlib.ExitStack() as stack:
        if wrappers is not None:
            stack.enter_context(replaced(wrappers.Upsample, "forward", _enlarged(wrappers.Upsample.forward)))
            silent = (*wrappers.resize.__defaults__[:-1], False)
            stack.enter_context(replaced(wrappers.resize, "__defaults__", silent))
        yield


def _enlarged(forward: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """The ``forward`` of an ``Upsample``, by a whole factor if it has one."""

    def enlarged(module: Any, map: Tensor) -> Tensor:
        factor = module.scale_factor
        if module.size or not isinstance(factor, float) or not factor.is_integer():
            return forward(module, map)
        size = [side * int(factor) for side in map.shape[2:]]
        return F.interpolate(map, size=size, mode=module.mode, align_corners=module.align_corners)

    return enlarged


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Within it, something has another attribute."""
    old = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, old)


PROBE = 128
"""Pixels of the image whose maps say what a network has. A multiple of all strides."""


def maps_of_probe(model: Any) -> tuple[Tensor, ...]:
    """What the backbone and the neck of a model make of a small image."""
    channels = getattr(model.backbone, "in_channels", 3)
    with evaluating(model), torch.no_grad():
        return Features(model)(torch.zeros(1, channels, PROBE, PROBE))
