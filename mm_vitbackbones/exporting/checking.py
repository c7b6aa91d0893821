"""Whether a file computes what its network does, at sizes that it was not traced at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mm_vitbackbones.exporting import dino
from mm_vitbackbones.exporting.choices import Choices, NotFollowed, box_difference, following, worse
from mm_vitbackbones.exporting.detectors import BOXES
from mm_vitbackbones.exporting.networks import Network, outputs_of

TOLERANCE = {False: 1e-4, True: 2e-2}
"""The largest error, as a part of the largest value: in single precision, and in half."""

UNSEEN: tuple[tuple[int, int, int], ...] = ((1, 32, 32), (3, 201, 251), (1, 97, 352), (3, 64, 224), (1, 768, 1024))
"""Batch, height, width: the smallest image, odd ones, other shapes, and a large one."""

PIXELS = 0.01
"""The part of an image's pixels that may have another label: two scores may be as good as equal."""


def unseen(network: Network) -> list[tuple[int, int, int]]:
    """The sizes to check, none of them smaller than the network takes."""
    least = network.smallest
    return [(batch, max(height, least), max(width, least)) for batch, height, width in UNSEEN]


@dataclass(frozen=True)
class Checked:
    """What came out at one size of image: batch, height, width."""

    size: tuple[int, int, int]
    error: float
    """The largest difference of all outputs, each as a part of its largest value. Infinite for a result of another
    shape, a choice of boxes that no error within the tolerance explains, or a file that fails."""
    what: str = ""
    """More, in a few words: why it failed, or how many boxes were compared."""
    boxes: int | None = None

    def __str__(self) -> str:
        batch, height, width = self.size
        return f"{height}x{width}".ljust(11) + f"{batch:>5}   {self.error:.1e}   {self.what}".rstrip()


class File(Protocol):
    """A file in its runtime."""

    def __call__(self, image: Tensor, /) -> Sequence[Tensor]: ...

    def followed(self, image: Tensor, /) -> tuple[Sequence[Tensor], Choices]:
        """The same, and what a detector chooses."""
        ...


def check(
    network: Network,
    run: File,
    sizes: Sequence[tuple[int, int, int]],
    half: bool = False,
    tolerance: float | None = None,
) -> list[Checked]:
    """Compare a network and its file, which may be in half precision, on noise of each size."""
    most = TOLERANCE[half] if tolerance is None else tolerance
    return [_check(network, run, size, most) for size in sizes]


def _check(network: Network, run: File, size: tuple[int, int, int], tolerance: float) -> Checked:
    image = noise(network, size)
    chosen = Choices()
    try:
        if network.kind == "detector":
            found, chosen = run.followed(image)
        else:
            found = run(image)
    except Exception as error:  # a runtime raises errors of its own
        return Checked(size, float("inf"), f"fails: {in_short(error)}")
    try:
        with following(chosen, tolerance, size[1:]) as followed:
            expected = outputs_of(network, image)
    except NotFollowed as error:
        return Checked(size, float("inf"), f"has {error}")
    wrong = [
        f"{name} is {tuple(got.shape)}, not {tuple(want.shape)}"
        for name, want, got in zip(network.outputs, expected, found, strict=True)
        if want.shape != got.shape
    ]
    if wrong:
        return Checked(size, float("inf"), wrong[0])
    if network.outputs == ("labels",):
        return _labels(size, expected[0], found[0])
    named = dict(zip(network.outputs, zip(expected, found, strict=True), strict=True))
    errors = {name: difference(*pair) for name, pair in named.items()}
    if network.kind != "detector":
        return Checked(size, max(errors.values()))
    errors["candidates"] = followed.error
    boxes, what = None, []
    if network.outputs[:3] == BOXES:
        boxes = int((expected[2] >= 0).sum())
        what.append(f"{boxes} boxes")
        if not isinstance(network.module, dino.Dino):  # whose boxes are parts of the image
            errors["boxes"] = box_difference(*named["boxes"], size[1:])
    worst = max(errors, key=lambda name: errors[name])
    if errors[worst] > tolerance:
        return Checked(size, errors[worst], f"most of all in its {worst}", boxes)
    if followed.wrong:
        return Checked(size, float("inf"), f"of its candidates, {followed.wrong}", boxes)
    if followed.otherwise:
        what.append(f"{followed.otherwise} of {followed.count} choices otherwise")
    return Checked(size, errors[worst], ", ".join(what), boxes)


def in_short(error: Exception) -> str:
    """The beginning of an error's message, in one line."""
    return " ".join(str(error).split())[:200]


def noise(network: Network, size: tuple[int, int, int]) -> Tensor:
    """An image of noise, such as the file takes."""
    batch, height, width = size
    generator = torch.Generator().manual_seed(batch * height * width)
    image = torch.randn(batch, network.channels, height, width, generator=generator)
    return (image * 60 + 120).clamp(0, 255) if network.preprocessing.inside else image


def difference(expected: Tensor, found: Tensor) -> float:
    """The largest difference as a part of the largest value; infinite if something is no number."""
    if not expected.numel():
        return 0.0
    if not expected.dtype.is_floating_point:
        return 0.0 if torch.equal(expected, found) else float("inf")
    return worse(0.0, float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-12)))


def _labels(size: tuple[int, int, int], expected: Tensor, found: Tensor) -> Checked:
    other = float((expected != found).float().mean())
    what = f"{other:.2%} of the pixels have another label"
    return Checked(size, 0.0 if other <= PIXELS else other, what)
