"""Feature maps as colours, and how alike their places are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mm_vitbackbones.inspection.features import principal_colours, similarities


def spread_out() -> tuple[Tensor, Tensor]:
    """A map (C, H, W) of three directions of different spread, and what lies along each (3, H, W)."""
    torch.manual_seed(0)
    parts = torch.randn(3, 8, 9) * torch.tensor([9.0, 3.0, 1.0])[:, None, None]
    basis = torch.linalg.qr(torch.randn(6, 3))[0]
    return torch.einsum("cd,dhw->chw", basis, parts) + 5, parts


def test_colours_are_the_directions_of_the_largest_spread_in_order() -> None:
    map, parts = spread_out()
    (colours,) = principal_colours([map])
    assert colours.shape == (8, 9, 3)
    assert float(colours.min()) == 0
    assert float(colours.max()) == 1
    for i in range(3):
        both = torch.corrcoef(torch.stack((colours[..., i].flatten(), parts[i].flatten())))
        assert abs(float(both[0, 1])) > 0.93


def test_several_maps_have_one_basis() -> None:
    map, _ = spread_out()
    (whole,) = principal_colours([map])
    upper, lower = principal_colours([map[:, :3], map[:, 3:]])
    torch.testing.assert_close(torch.cat((upper, lower)), whole)
    (alone,) = principal_colours([map[:, :3]])
    assert not torch.allclose(alone, upper, atol=0.05)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_a_map_without_spread_has_no_colour(channels: int) -> None:
    (colours,) = principal_colours([torch.full((channels, 3, 4), 7.0)])
    assert torch.equal(colours, torch.zeros(3, 4, 3))


def test_fewer_channels_have_fewer_colours() -> None:
    (colours,) = principal_colours([torch.randn(2, 5, 5)])
    assert float(colours[..., 1].max()) == 1
    assert float(colours[..., 2].max()) == 0


def test_similarity_is_the_cosine() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(4, 3, 5), torch.randn(4, 2, 2)
    found = similarities([first, second], 2, 3)
    chosen = first[:, 2, 3]
    for map, cosines in zip((first, second), found, strict=True):
        for y in range(map.shape[1]):
            for x in range(map.shape[2]):
                other = map[:, y, x]
                expected = float(chosen @ other / chosen.norm() / other.norm())
                assert float(cosines[y, x]) == pytest.approx(expected, abs=1e-6)
    assert float(found[0][2, 3]) == pytest.approx(1)
