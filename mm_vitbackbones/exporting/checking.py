"""Whether a file computes what its network does, at sizes that it was not traced at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mm_vitbackbones.exporting.networks import Network, outputs_of

TOLERANCE = {False: 1e-4, True: 2e-2}
"""The largest error, as a part of the largest value: in single precision, and in half."""

UNSEEN = ((1, 32, 32), (3, 201, 251), (1, 97, 352), (3, 64, 224), (1, 768, 1024))
"""Batch, height, width: the smallest image, odd ones, other shapes, and a large one."""

OTHERWISE = 0.01
"""The part of an image's pixels, or boxes, that may be decided otherwise: two scores may be as good as equal."""


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
    shape, or a file that fails."""
    what: str = ""
    """More, in a few words: why it failed, or how many boxes were compared."""
    boxes: int | None = None

    def __str__(self) -> str:
        batch, height, width = self.size
        return f"{height}x{width}".ljust(11) + f"{batch:>5}   {self.error:.1e}   {self.what}".rstrip()


def check(
    network: Network, run: Callable[[Tensor], Sequence[Tensor]], sizes: Sequence[tuple[int, int, int]]
) -> list[Checked]:
    """Compare a network and its file on noise of each size."""
    return [_check(network, run, size) for size in sizes]


def _check(network: Network, run: Callable[[Tensor], Sequence[Tensor]], size: tuple[int, int, int]) -> Checked:
    image = noise(network, size)
    expected = outputs_of(network, image)
    try:
        found = run(image)
    except Exception as error:  # a runtime raises errors of its own
        return Checked(size, float("inf"), "fails: " + " ".join(str(error).split())[:200])
    wrong = [
        f"{name} is {tuple(got.shape)}, not {tuple(want.shape)}"
        for name, want, got in zip(network.outputs, expected, found, strict=True)
        if want.shape != got.shape
    ]
    if wrong:
        return Checked(size, float("inf"), wrong[0])
    if network.outputs[:3] == ("boxes", "scores", "labels"):
        return _boxes(size, expected, found)
    if network.outputs == ("labels",):
        return _labels(size, expected[0], found[0])
    return Checked(size, max(difference(want, got) for want, got in zip(expected, found, strict=True)))


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
    most = float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-12))
    return most if most == most else float("inf")


def _labels(size: tuple[int, int, int], expected: Tensor, found: Tensor) -> Checked:
    other = float((expected != found).float().mean())
    what = f"{other:.2%} of the pixels have another label"
    return Checked(size, 0.0 if other <= OTHERWISE else other, what)


def _boxes(size: tuple[int, int, int], expected: Sequence[Tensor], found: Sequence[Tensor]) -> Checked:
    """Each box is compared with the one of the other side that has the same label and overlaps most."""
    errors, lost, count = [0.0], 0, 0
    for image in range(size[0]):
        (boxes, scores, labels), other = ([kind[image] for kind in side[:3]] for side in (expected, found))
        count += int((labels >= 0).sum())
        lost += abs(int((labels >= 0).sum()) - int((other[2] >= 0).sum()))
        masks = found[3][image] if len(found) > 3 else None
        for index, (box, score, label) in enumerate(zip(boxes, scores, labels, strict=True)):
            if label < 0:
                break
            same = other[2] == label
            if not same.any():
                lost += 1
                continue
            far = (other[0][same] - box).abs().amax(1) / max(size[1:])
            error = torch.maximum(far, (other[1][same] - score).abs())
            nearest = float(error.min())
            if nearest > LOST:
                lost += 1
                continue
            errors.append(nearest)
            if masks is not None:
                errors.append(float((masks[same][error.argmin()] - expected[3][image, index]).abs().max()))
    what = f"{count} boxes" + (f", {lost} otherwise" if lost else "")
    allowed = max(1, OTHERWISE * count)
    return Checked(size, max(errors) if lost <= allowed else float("inf"), what, count)


LOST = 0.05
"""A box that differs by more, as a part of the image's longer side or in its score, is another one."""
