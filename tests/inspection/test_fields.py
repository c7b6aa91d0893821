"""Effective receptive fields."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from helpers.toys import TOYS
from mm_vitbackbones.inspection.fields import SHARES, Field, areas, mean_field, receptive_fields


def conv(side: int, stride: int = 1) -> nn.Conv2d:
    made = nn.Conv2d(1, 1, side, stride, padding=side // 2 if stride == 1 else 0)
    nn.init.ones_(made.weight)
    return made


def fields(network: nn.Module, *size: int, stride: float = 1) -> Field:
    return receptive_fields(lambda image: {"map": network(image)}, torch.randn(1, 1, *size), {"map": stride})["map"]


def test_one_convolution_has_the_field_of_its_kernel() -> None:
    field = fields(conv(3), 9, 11)
    expected = torch.zeros(9, 11, dtype=torch.float64)
    expected[3:6, 4:7] = 1
    assert torch.equal(field.energy, expected)
    assert field.centre == (4.5, 5.5)
    assert areas(field) == [9, 9, 9, 9]  # the centre alone has 11 %
    assert areas(field, (0.1,)) == [1]


def test_two_convolutions_have_the_field_that_arithmetic_gives() -> None:
    field = fields(nn.Sequential(conv(3), conv(3)), 9, 9)
    line = torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(field.energy[2:7, 2:7], line[:, None] * line)
    assert float(field.energy.sum()) == pytest.approx(81)
    assert areas(field) == [9, 9, 9, 25]  # of 9, 49 and 81 in squares of 1, 3 and 5


def test_a_patch_has_its_pixels() -> None:
    field = fields(conv(4, 4), 16, 24, stride=4)
    assert field.centre == (10.0, 14.0)
    assert areas(field) == [4, 16, 16, 16]  # four pixels around the centre have 25 %


def test_a_field_that_meets_the_border_counts_pixels_of_the_image() -> None:
    energy = torch.ones(3, 7, dtype=torch.float64)
    assert areas(Field(energy, (1.5, 3.5)), (1.0, 0.6, 0.4)) == [21, 15, 9]


def test_no_energy_has_no_area() -> None:
    assert areas(Field(torch.zeros(4, 4, dtype=torch.float64), (2.0, 2.0))) == [0, 0, 0, 0]


def test_a_norm_at_the_end_leaves_a_field() -> None:
    """The sum over the channels of a layer norm is a constant."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(1, 8, 3, padding=1)

        def forward(self, image: Tensor) -> Tensor:
            return nn.functional.layer_norm(self.conv(image).permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2)

    field = fields(Normed(), 9, 9)
    assert areas(field, (1.0,)) == [9]
    assert float(field.energy.sum()) > 0.1


def test_the_mean_of_images_of_several_sizes_has_one_centre() -> None:
    network = conv(3)
    mean = mean_field([fields(network, 9, 9), fields(network, 13, 7)])
    assert mean.centre == (6.5, 4.5)
    assert tuple(mean.energy.shape) == (13, 9)
    assert float(mean.energy.sum()) == pytest.approx(9)
    assert areas(mean) == [9, 9, 9, 9]


@pytest.mark.parametrize("name", TOYS)
def test_every_family_has_a_field_of_each_level(name: str) -> None:
    torch.manual_seed(0)
    backbone = TOYS[name]().eval().requires_grad_(False)
    found = receptive_fields(lambda image: dict(enumerate(backbone(image))), torch.randn(1, 3, 70, 101))
    assert len(found) == len(backbone.out_indices)
    for field in found.values():
        sizes = areas(field)
        assert sizes == sorted(sizes)
        assert 0 < sizes[0] <= sizes[-1] <= 70 * 101
    assert len(SHARES) == 4
