"""Which places a score rests on."""

from __future__ import annotations

import torch
from torch import Tensor

from mm_vitbackbones.inspection.cam import grad_cam, score_cam


def test_the_map_of_a_linear_score_is_its_channels_by_their_weights() -> None:
    torch.manual_seed(0)
    level, weights = torch.randn(3, 4, 5, requires_grad=True), torch.tensor([2.0, -1.0, 0.5])
    where = torch.rand(4, 5)  # places count differently
    (gradient,) = torch.autograd.grad(((level * where).sum((1, 2)) * weights).sum(), level)
    found = grad_cam(level.detach(), gradient)
    expected = sum(float(w * where.mean()) * channel for w, channel in zip(weights, level.detach(), strict=True))
    torch.testing.assert_close(found, expected.clamp(min=0))
    assert (found == 0).any()


def test_channels_count_by_the_score_of_what_they_show() -> None:
    level = torch.zeros(2, 2, 2)
    level[0, 0] = 1  # the upper half
    level[1, 1] = 3  # the lower one
    image = torch.ones(1, 1, 2, 2)

    def score(masked: Tensor) -> float:
        return float(masked[0, 0, 0].mean()) * 4  # only the upper half counts

    upper, lower = torch.tensor([4.0, 0.0]).softmax(0)
    found = score_cam(level, image, score, most=2)
    torch.testing.assert_close(found, torch.stack((upper.expand(2), 3 * lower.expand(2))))
    # Of one channel, that with the larger spread.
    torch.testing.assert_close(score_cam(level, image, score, most=1), torch.tensor([[0.0, 0.0], [3.0, 3.0]]))
