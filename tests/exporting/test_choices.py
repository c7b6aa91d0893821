"""What a file may choose otherwise than its network, and what not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.exported import AsFile
from mm_vitbackbones.exporting import choices, onnx_files, packages, programs
from mm_vitbackbones.exporting.choices import Choices, Followed, NotFollowed
from mm_vitbackbones.exporting.operators import roi_align

SIZE = (100, 100)
TOLERANCE = 0.01
"""Two scores may change places if they differ by less than 0.02 of the largest."""

SCORES = torch.tensor([[0.2, 1.0, 0.5, 0.49, 0.3]])


def chosen(at: list[int], values: list[float] | None = None, scores: Tensor = SCORES) -> Choices:
    places = torch.tensor([at])
    return Choices([(scores.gather(1, places) if values is None else torch.tensor([values]), places)])


def highest(made: Choices, count: int, limit: float | None = None) -> tuple[Followed, Tensor, Tensor]:
    with choices.following(made, TOLERANCE, SIZE) as followed:
        scores = SCORES if limit is None else choices.above(SCORES, SCORES, limit)
        return followed, *choices.highest(scores, count)


def test_the_choice_of_a_file_is_taken_with_the_scores_of_the_network() -> None:
    followed, scores, at = highest(chosen([1, 3], [1.005, 0.495]), 2)
    assert at.tolist() == [[1, 3]]
    torch.testing.assert_close(scores, torch.tensor([[1.0, 0.49]]))
    assert followed.error == pytest.approx(0.005)
    assert (followed.wrong, followed.otherwise, followed.count) == ("", 1, 2)


@pytest.mark.parametrize(
    ("at", "wrong"),
    [
        ([1, 2], ""),
        ([1, 3], ""),
        ([1, 4], "a score of 0.5 is left out"),
        ([2, 3], "a score of 1 is left out"),
        ([1, 1], "one is chosen twice"),
        ([2, 1], "what is chosen is not in the order of its scores"),
    ],
)
def test_only_scores_that_are_as_good_as_equal_change_places(at: list[int], wrong: str) -> None:
    assert highest(chosen(at), 2)[0].wrong == wrong


@pytest.mark.parametrize(("limit", "wrong"), [(0.51, ""), (0.48, ""), (0.46, "a score of 0.49 is left out")])
def test_only_scores_at_the_threshold_may_be_on_its_other_side(limit: float, wrong: str) -> None:
    """The file takes 1.0 and 0.5, and not 0.49."""
    assert highest(chosen([1, 2, 0], [1.0, 0.5, 0.0]), 3, limit)[0].wrong == wrong


def test_what_is_below_the_threshold_is_none() -> None:
    followed, scores, _ = highest(chosen([1, 0], [1.0, 0.2]), 2, 0.4)
    assert scores.tolist() == [[1.0, 0.0]]
    assert followed.error == pytest.approx(0.2)


BOXES = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 6.9], [50, 50, 60, 60], [50, 50, 60, 69], [80, 80, 90, 90]]])
"""Of the first two the intersection is 0.69 of the union, of the next two 0.53."""


def remaining(at: list[int], scores: list[float], threshold: float = 0.7, count: int = 5) -> Followed:
    every = torch.tensor([scores])
    places = at + [0] * (count - len(at))
    values = [scores[place] for place in at] + [0.0] * (count - len(at))
    with choices.following(chosen(places, values), TOLERANCE, SIZE) as followed:
        choices.above(every, every, 0.1)
        found, _ = choices.remaining(BOXES, every, threshold, count)
        torch.testing.assert_close(found, torch.tensor([values]))
        return followed


@pytest.mark.parametrize(
    ("at", "threshold", "wrong"),
    [
        ([0, 1, 2, 3, 4], 0.7, ""),
        ([0, 2, 3, 4], 0.7, ""),  # 0.69 is as good as 0.7
        ([0, 1, 2, 4], 0.7, "a score of 0.6 is left out"),
        ([0, 1, 2, 3], 0.7, "a score of 0.5 is left out"),
        ([0, 1, 3, 4], 0.7, "a score of 0.7 is left out"),
        ([0, 1, 2, 4], 0.5, "two boxes overlap by more than NMS leaves"),
        ([0, 2, 4], 0.5, ""),
        ([1, 2, 4], 0.5, "a score of 0.9 is left out"),
    ],
)
def test_nms_may_decide_otherwise_where_the_overlap_is_at_the_threshold(
    at: list[int], threshold: float, wrong: str
) -> None:
    assert remaining(at, [0.9, 0.8, 0.7, 0.6, 0.5], threshold).wrong == wrong


def test_either_of_two_boxes_with_equal_scores_may_suppress_the_other() -> None:
    followed = remaining([1, 3, 4], [0.9, 0.9, 0.595, 0.6, 0.5], 0.5)
    assert (followed.wrong, followed.otherwise) == ("", 1)


def test_as_many_remain_as_are_asked_for() -> None:
    scores = [0.9, 0.8, 0.505, 0.5, 0.3]
    assert remaining([0, 1, 3], scores, 0.7, count=3).wrong == ""
    assert remaining([0, 1, 4], scores, 0.7, count=3).wrong == "a score of 0.505 is left out"


def test_the_longer_side_of_a_box_decides_what_its_errors_are_parts_of() -> None:
    boxes = torch.tensor([[10.0, 10, 90, 20], [50, 50, 52, 52], [0, 10, 5, 20]])
    assert choices.reach(boxes, SIZE).tolist() == [80.0, 64.0, 100.0]
    moved = boxes + torch.tensor([[0.0, 0.8, 0, 0], [0, 0, 0, 0.6], [0, 0, 0, 0.9]])
    assert choices.box_difference(boxes, moved, SIZE) == pytest.approx(0.01)
    assert choices.box_difference(boxes, moved * torch.nan, SIZE) == float("inf")
    assert choices.box_difference(boxes[:0], moved[:0], SIZE) == 0


def test_boxes_of_roialign_are_compared_and_those_of_the_file_are_taken() -> None:
    boxes = BOXES + 1
    found = boxes + torch.tensor([0.0, 0.0, 0.0, 0.1])
    with choices.following(Choices([], [found[0]]), TOLERANCE, SIZE) as followed:
        assert torch.equal(choices.regions(boxes), found)
    assert followed.error == pytest.approx(0.1 / 64, rel=1e-3)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (chosen([1, 2, 3]), "other choices than the network makes"),
        (Choices(), "other choices than the network makes"),
        (Choices([*chosen([1, 2]).highest, *chosen([1, 2]).highest]), "1 choices more than the network makes"),
        (chosen([1, 7], [1.0, 0.5]), "a choice that is not there"),
        (Choices(chosen([1, 2]).highest, [torch.zeros(3, 4)]), "1 choices more than the network makes"),
    ],
)
def test_choices_of_another_network_cannot_be_followed(made: Any, message: str) -> None:
    with pytest.raises(NotFollowed, match=message):
        highest(made, 2)


class Chooser(nn.Module):
    """Chooses nine places, four of the boxes there, and reads these."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        scores = image[:, 0].flatten(1).sigmoid()
        scores, at = choices.highest(choices.above(scores, scores, 0.5), 9)
        left = (at % 16).float()
        boxes = torch.stack((left, left * 0, left + 4, left * 0 + 9), -1)
        scores, at = choices.remaining(boxes, scores, 0.3, 4)
        boxes = choices.regions(boxes.gather(1, at.clamp(max=8)[..., None].expand(-1, -1, 4)))
        image_of_each = torch.arange(len(image))[:, None].expand(-1, 4).flatten()
        return scores, roi_align([image], boxes.flatten(0, 1), image_of_each, image_of_each * 0, [1.0], 2, 0)


@pytest.mark.parametrize("kind", ["onnx", "torch-export"])
def test_choices_of_a_file_are_noted(kind: str, tmp_path: Path) -> None:
    image = torch.randn(2, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    program = programs.trace(Chooser(), image, fixed=True)
    file: Any
    if kind == "onnx":
        for name in packages.NEEDED:
            pytest.importorskip(name)
        onnx_files.write(program, tmp_path / "toy", ["scores", "read"], 20, {})
        file = onnx_files.Session(tmp_path / "toy", watched=True)
    else:
        programs.write(program, tmp_path / "toy", {})
        file = programs.Loaded(tmp_path / "toy")
    found, made = file.followed(image)
    expected, own = AsFile(Chooser()).followed(image)
    assert [at.tolist() for _, at in made.highest] == [at.tolist() for _, at in own.highest]
    assert [at.shape[1] for _, at in own.highest] == [9, 4]
    (regions,), (own_regions,) = made.regions, own.regions
    torch.testing.assert_close(regions, own_regions)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(file(image), expected)
    with choices.following(made, TOLERANCE, (12, 20)) as followed:
        Chooser()(image)
    assert (followed.wrong, followed.otherwise) == ("", 0)
    assert followed.error < 1e-5
