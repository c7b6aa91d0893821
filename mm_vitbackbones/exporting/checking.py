"""Whether a file computes what its network does, at sizes that it was not traced at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mm_vitbackbones.exporting.dino import QUERIES
from mm_vitbackbones.exporting.networks import Network, outputs_of

TOLERANCE = {False: 1e-4, True: 2e-2}
"""The largest error, as a part of the largest value: in single precision, and in half."""

UNSEEN: tuple[tuple[int, int, int], ...] = ((1, 32, 32), (3, 201, 251), (1, 97, 352), (3, 64, 224), (1, 768, 1024))
"""Batch, height, width: the smallest image, odd ones, other shapes, and a large one."""

PIXELS = 0.01
"""The part of an image's pixels that may have another label: two scores may be as good as equal."""

OTHERWISE = {False: 0.01, True: 0.2}
"""The part of the boxes or queries that may be others, in single precision and in half. A box may come from another
place of as good a score, and the precision says which one is higher."""

FEW = 10
"""So many boxes of a batch and more have one that may be decided otherwise."""


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
    network: Network,
    run: Callable[[Tensor], Sequence[Tensor]],
    sizes: Sequence[tuple[int, int, int]],
    half: bool = False,
    tolerance: float | None = None,
) -> list[Checked]:
    """Compare a network and its file, which may be in half precision, on noise of each size."""
    rule = Rule(TOLERANCE[half] if tolerance is None else tolerance, OTHERWISE[half])
    return [_check(network, run, size, rule) for size in sizes]


@dataclass(frozen=True)
class Rule:
    """What counts as equal."""

    tolerance: float
    otherwise: float
    """See ``OTHERWISE``."""

    def judged(self, size: tuple[int, int, int], errors: Tensor, what: str) -> Checked:
        """Errors of things that the network chose, such as boxes: all of them must be small, except for the few that
        may be chosen otherwise."""
        wrong = int((errors > self.tolerance).sum())
        count = len(errors)
        if wrong <= max(self.otherwise * count, count >= FEW):
            errors = errors[errors <= self.tolerance]
        error = float(errors.max()) if len(errors) else 0.0
        return Checked(size, error, what + (f", {wrong} otherwise" if wrong else ""))


def _check(
    network: Network, run: Callable[[Tensor], Sequence[Tensor]], size: tuple[int, int, int], rule: Rule
) -> Checked:
    image = noise(network, size)
    expected = outputs_of(network, image)
    try:
        found = run(image)
    except Exception as error:  # a runtime raises errors of its own
        return Checked(size, float("inf"), f"fails: {in_short(error)}")
    wrong = [
        f"{name} is {tuple(got.shape)}, not {tuple(want.shape)}"
        for name, want, got in zip(network.outputs, expected, found, strict=True)
        if want.shape != got.shape
    ]
    if wrong:
        return Checked(size, float("inf"), wrong[0])
    if network.outputs[:3] == ("boxes", "scores", "labels"):
        return _boxes(size, expected, found, rule)
    if network.outputs == QUERIES:
        return _queries(size, expected, found, rule)
    if network.outputs == ("labels",):
        return _labels(size, expected[0], found[0])
    return Checked(size, max(difference(want, got) for want, got in zip(expected, found, strict=True)))


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
    most = float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-12))
    return most if most == most else float("inf")


def _labels(size: tuple[int, int, int], expected: Tensor, found: Tensor) -> Checked:
    other = float((expected != found).float().mean())
    what = f"{other:.2%} of the pixels have another label"
    return Checked(size, 0.0 if other <= PIXELS else other, what)


def _boxes(size: tuple[int, int, int], expected: Sequence[Tensor], found: Sequence[Tensor], rule: Rule) -> Checked:
    """Each box is compared with the one of the other side that has the same label and is nearest."""
    errors = []
    for image in range(size[0]):
        want, got = ([kind[image, side[2][image] >= 0] for kind in side] for side in (expected, found))
        error = _distances([want[0] / max(size[1:]), want[1][:, None]], [got[0] / max(size[1:]), got[1][:, None]])
        error = torch.where(want[2][:, None] == got[2], error, torch.inf)
        nearest, at = _nearest(error)
        if len(want) > 3 and len(got[0]):
            masks = (got[3][at] - want[3]).abs().flatten(1).amax(1)
            nearest = torch.maximum(nearest, masks)
        more = max(0, len(got[0]) - len(want[0]))
        errors += [nearest, torch.full((more,), torch.inf)]
    count = int((expected[2] >= 0).sum())
    return replace(rule.judged(size, torch.cat(errors), f"{count} boxes"), boxes=count)


def _queries(size: tuple[int, int, int], expected: Sequence[Tensor], found: Sequence[Tensor], rule: Rule) -> Checked:
    """Queries begin at the places with the highest scores, and have the order of those: each is compared with the
    nearest one of the other side."""
    errors = []
    most = expected[0].abs().max().clamp(min=1e-12)
    for (scores, boxes), (other_scores, other_boxes) in zip(
        zip(*expected, strict=True), zip(*found, strict=True), strict=True
    ):
        errors.append(_nearest(_distances([scores / most, boxes], [other_scores / most, other_boxes]))[0])
    together = torch.cat(errors)
    return rule.judged(size, together, f"{len(together)} queries")


def _distances(these: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Rows (N, ...) and rows (M, ...) -> (N, M): the largest difference of any two; infinite of what is no number."""
    far = torch.stack([torch.cdist(one, other, p=torch.inf) for one, other in zip(these, others, strict=True)]).amax(0)
    unknown, other_unknown = (
        torch.cat([*side], 1).isnan().any(1) for side in (these, others)
    )  # cdist passes over them
    return torch.where(unknown[:, None] | other_unknown, torch.inf, far)


def _nearest(distances: Tensor) -> tuple[Tensor, Tensor]:
    """(N, M) -> the smallest of each row, (N,), infinite if there is none, and where it is."""
    if not distances.shape[1]:
        return torch.full_like(distances[:, :0].sum(1), torch.inf), distances[:, :0].sum(1).long()
    near = distances.min(1)
    return near.values, near.indices
