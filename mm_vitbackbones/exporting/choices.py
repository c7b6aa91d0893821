"""The places where a detector chooses among boxes, and how the choices of a file are followed and judged.

Two computations of one detector differ by rounding, and where two scores are as good as equal, they may choose
different boxes. All that comes after a choice is then different, so boxes alone say little about a file. Instead the
network *follows* the file: in each of these places it takes what the file took. Then all numbers have to be equal, box
by box; and each choice has to be one that the network could make itself, if scores and overlaps changed by no more than
the tolerance.

Both kinds of file have a choice as one node, ``TopK``, and what RoIAlign reads as the input of another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from mm_vitbackbones.exporting.operators import nms_kept

_followed: ContextVar[Followed | None] = ContextVar("followed", default=None)


def above(scores: Tensor, values: Tensor, limit: float) -> Tensor:
    """Scores where their values are above a limit, and 0 elsewhere."""
    followed = _followed.get()
    return followed.above(scores, values, limit) if followed else torch.where(values > limit, scores, 0.0)


def large(scores: Tensor, boxes: Tensor, smallest: float) -> Tensor:
    """Scores (B, N) where both sides of their box are longer than the smallest, and 0 elsewhere."""
    followed = _followed.get()
    if followed:
        return followed.large(scores, boxes, smallest)
    return torch.where((sides_of(boxes) > smallest).all(-1), scores, 0.0)


def highest(scores: Tensor, count: int, none: float = 0.0) -> tuple[Tensor, Tensor]:
    """The ``count`` highest scores of each row of (B, N), from the highest down, and where they are: (B, count) each. A
    score of ``none`` stands for nothing."""
    followed = _followed.get()
    found = followed.highest(scores, count, none) if followed else scores.topk(count)
    return found[0], found[1]


def remaining(boxes: Tensor, scores: Tensor, iou_threshold: float, most: int) -> tuple[Tensor, Tensor]:
    """The same for boxes (B, N, 4) that remain after non-maximum suppression."""
    followed = _followed.get()
    if followed:
        return followed.remaining(boxes, scores, iou_threshold, most)
    kept = nms_kept(boxes, scores, iou_threshold, most)
    return highest(padded(torch.where(kept, scores, 0.0), most, 0.0), most)


def padded(scores: Tensor, most: int, value: float) -> Tensor:
    """(B, N) with ``most`` more, so that as many can be chosen of any number."""
    return torch.cat((scores, scores.new_full((scores.shape[0], most), value)), 1)


def regions(boxes: Tensor) -> Tensor:
    """Boxes (B, N, 4) whose parts of the maps are read next."""
    followed = _followed.get()
    return followed.regions(boxes) if followed else boxes


def sides_of(boxes: Tensor) -> Tensor:
    """Boxes (..., 4) -> width and height, (..., 2)."""
    return boxes[..., 2:] - boxes[..., :2]


@dataclass
class Choices:
    """What a file chose in one run, in order."""

    highest: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Scores and where they were, (B, count) each."""
    regions: list[Tensor] = field(default_factory=list)
    """Boxes (B * N, 4) for RoIAlign."""


class NotFollowed(Exception):
    """A file makes other kinds of choices than its network."""


@contextlib.contextmanager
def following(choices: Choices, tolerance: float, size: tuple[int, int]) -> Iterator[Followed]:
    """Within it, detectors take the choices that a file made for an image of this height and width.

    Raises:
        NotFollowed: they cannot.
    """
    followed = Followed(choices, tolerance, size)
    token = _followed.set(followed)
    try:
        yield followed
    finally:
        _followed.reset(token)
    if followed.left:
        raise NotFollowed(f"{followed.left} choices more than the network makes")


class Followed:
    """The choices of a file while a network follows them, and what is wrong with them."""

    def __init__(self, choices: Choices, tolerance: float, size: tuple[int, int]) -> None:
        self._highest, self._regions = iter(choices.highest), iter(choices.regions)
        self.left = len(choices.highest) + len(choices.regions)
        self.tolerance, self.size = tolerance, size
        self.error = 0.0
        """The largest difference of the scores and boxes that were chosen."""
        self.wrong = ""
        """The first choice that no error within the tolerance explains."""
        self.count = self.otherwise = 0
        """How many were chosen; and how many of them the network would not choose."""
        self._inside: list[Tensor] = []
        """How far the candidates of the next choice are inside the limits, (B, N) of each level: above 0 for those that
        the network takes, above 1 for those that it takes whatever the errors are, above -1 for those that a file may
        take."""

    def above(self, scores: Tensor, values: Tensor, limit: float) -> Tensor:
        inside = (values - limit) / self._tie(values)
        self._inside.append(inside.flatten(1))
        return torch.where(inside > -1, scores, 0.0)

    def large(self, scores: Tensor, boxes: Tensor, smallest: float) -> Tensor:
        inside = (sides_of(boxes).amin(-1) - smallest) / (2 * self.tolerance * reach(boxes, self.size))
        self._inside = [torch.minimum(torch.cat(self._inside, 1), inside)]
        return torch.where(inside > -1, scores, 0.0)

    def highest(self, scores: Tensor, count: int, none: float) -> tuple[Tensor, Tensor]:
        known = bool(self._inside)
        inside = self._inside.pop() if known else torch.full_like(scores, torch.inf)
        inside = F.pad(inside, (0, scores.shape[1] - inside.shape[1]), value=-torch.inf)
        values, at = self._take(scores, count)
        own = torch.where(inside > 0, scores, none).topk(count)
        for image in range(len(scores)):
            self._judge(scores[image], inside[image] > 1, values[image], at[image], own[1][image], none)
        some = values > none
        if known:
            self._inside.append(torch.where(some, torch.inf, -torch.inf))
        return torch.where(some, scores.gather(1, at), none), at

    def remaining(self, boxes: Tensor, scores: Tensor, iou_threshold: float, most: int) -> tuple[Tensor, Tensor]:
        inside = torch.cat(self._inside, 1)
        self._inside = []
        kept = nms_kept(boxes, torch.where(inside > 0, scores, 0.0), iou_threshold, most)
        own = padded(torch.where(kept, scores, 0.0), most, 0.0).topk(most)
        scores = padded(scores, most, 0.0)
        values, at = self._take(scores, most)
        sure, boxes = F.pad(inside > 1, (0, most)), F.pad(boxes, (0, 0, 0, most))
        for image in range(len(scores)):
            overlaps = Overlaps(boxes[image], iou_threshold, self.tolerance)
            self._judge(scores[image], sure[image], values[image], at[image], own[1][image], 0.0, overlaps)
        return torch.where(values > 0, scores.gather(1, at), 0.0), at

    def regions(self, boxes: Tensor) -> Tensor:
        found = next(self._regions, None)
        if found is None or found.numel() != boxes.numel():
            raise NotFollowed("other boxes for RoIAlign than the network has")
        self.left -= 1
        found = found.reshape(boxes.shape)
        self.error = worse(self.error, box_difference(boxes, found, self.size))
        return found

    def _take(self, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
        values, at = next(self._highest, (None, None))
        if values is None or at is None or values.shape != (len(scores), count):
            raise NotFollowed("other choices than the network makes")
        if not 0 <= int(at.min()) <= int(at.max()) < scores.shape[1]:
            raise NotFollowed("a choice that is not there")
        self.left -= 1
        return values, at

    def _tie(self, scores: Tensor) -> float:
        """Two scores that differ by less may have the other order: each has an error."""
        return 2 * self.tolerance * largest(scores)

    def _judge(
        self,
        scores: Tensor,
        sure: Tensor,
        values: Tensor,
        at: Tensor,
        own: Tensor,
        none: float,
        overlaps: Overlaps | None = None,
    ) -> None:
        """Judge what a file chose in one image.

        Args:
            scores: (N,), of all candidates.
            sure: (N,), bool: whether it is one whatever the errors are.
            values: (count,): scores in the file.
            at: (count,): what they are the scores of.
            own: (count,): what the network would choose.
            none: the score of nothing.
            overlaps: of the candidates, if the choice is one of those that remain after NMS.
        """
        chosen, values = at[values > none], values[values > none]
        tie, found = self._tie(scores), scores[chosen]
        self.count += len(chosen)
        self.otherwise += int((~torch.isin(chosen, own)).sum())
        if len(chosen):
            self.error = worse(self.error, float((values - found).abs().max()) / largest(scores))
        if len(chosen.unique()) < len(chosen):
            self._say("one is chosen twice")
        if (found[:-1] + tie < found[1:]).any():
            self._say("what is chosen is not in the order of its scores")
        if overlaps is not None and overlaps.among(chosen):
            self._say("two boxes overlap by more than NMS leaves")
        out = sure & (scores > (float(found.min()) + tie if len(chosen) == len(at) else none))
        out[chosen] = False
        left_out = out.nonzero()[:, 0]
        if overlaps is not None:
            left_out = left_out[~overlaps.suppressed(left_out, chosen, scores, tie)]
        if len(left_out):
            self._say(f"a score of {float(scores[left_out].max()):.3g} is left out")

    def _say(self, wrong: str) -> None:
        self.wrong = self.wrong or wrong


class Overlaps:
    """Boxes (N, 4) before non-maximum suppression, and whether what remains of them is right."""

    def __init__(self, boxes: Tensor, iou_threshold: float, tolerance: float) -> None:
        self.boxes, self.iou_threshold = boxes, iou_threshold
        # Boxes of other classes are moved far away, where single precision has steps of hundredths of a pixel.
        rounding = 4 * torch.finfo(torch.float32).eps * largest(boxes)
        self.tie = 2 * tolerance + rounding / sides_of(boxes).amin(-1).clamp(min=rounding)

    def among(self, chosen: Tensor) -> bool:
        """Whether two that remain overlap too much, whatever the errors are."""
        over = self._of(chosen, chosen) > self.iou_threshold + self.tie[chosen][:, None]
        return bool(over.triu(1).any())

    def suppressed(self, those: Tensor, chosen: Tensor, scores: Tensor, tie: float) -> Tensor:
        """Whether each of those may overlap too much with one that remains and has as high a score."""
        over = self._of(those, chosen) > self.iou_threshold - self.tie[those][:, None]
        return (over & (scores[chosen] >= scores[those][:, None] - tie)).any(1)

    def _of(self, those: Tensor, others: Tensor) -> Tensor:
        """Intersection over union of each two of (M,) and (K,): (M, K)."""
        one, other = self.boxes[those][:, None], self.boxes[others]
        common = (torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])).clamp(
            min=0
        )
        both = common.prod(-1)
        return both / (sides_of(one).prod(-1) + sides_of(other).prod(-1) - both).clamp(min=1e-12)


def largest(values: Tensor) -> float:
    """The largest finite value, without its sign."""
    finite = values[values.isfinite()].abs()
    return max(float(finite.max()), 1e-12) if finite.numel() else 1e-12


def worse(one: float, other: float) -> float:
    """The larger of two errors; infinite if one is no number."""
    return max(one, other) if one == one and other == other else float("inf")


ANCHOR = 64
"""Pixels: as large as a small anchor. A box that is smaller may come from such a one, whose errors are its errors."""


def reach(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) in an image (height, width) -> (...): what their errors are parts of, in pixels.

    It is the longer side of each. A box that ends at the border went on before it was cut off there, nobody knows how
    far, and has the whole image.
    """
    height, width = size
    cut = ((boxes <= 0) | (boxes >= boxes.new_tensor((width, height, width, height)))).any(-1)
    return torch.where(cut, float(max(size)), sides_of(boxes).amax(-1)).clamp(min=ANCHOR)


def box_difference(expected: Tensor, found: Tensor, size: tuple[int, int]) -> float:
    """The largest difference of the corners of boxes (..., 4) in an image, as a part of their reach."""
    if not expected.numel():
        return 0.0
    return worse(0.0, float(((expected - found).abs().amax(-1) / reach(expected, size)).max()))
