"""Masked convolution, CARAFE, PSA masks and deformable pooling."""

from __future__ import annotations

import importlib

import pytest
import torch
import torch.nn.functional as F

from helpers.operators import over_plain, with_gradients

pytestmark = pytest.mark.mmdet


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:This overload of addmm is deprecated:UserWarning")  # mmcv's own call
@pytest.mark.parametrize(("kernel", "padding"), [((3, 3), 1), ((3, 1), (1, 0)), ((2, 3), 0), ((3, 3), 3)])
def test_masked_convolution_is_the_convolution_where_the_mask_is_positive(kernel, padding, monkeypatch):
    convolve = over_plain("masked_conv", monkeypatch).masked_conv2d
    features, weight, bias = numbers(1, 3, 6, 7), numbers(4, 3, *kernel), numbers(4)
    expected = F.conv2d(features, weight, bias, padding=padding)
    mask = torch.zeros(1, 6, 7)
    rows, columns = min(6, expected.shape[2]), min(7, expected.shape[3])
    mask[:, :rows, :columns] = (numbers(1, rows, columns, seed=1) > 0).float()
    wanted = torch.zeros(expected.shape[2:], dtype=torch.bool)
    wanted[:rows, :columns] = mask[0, :rows, :columns] > 0
    found = convolve(features, mask, weight, bias, padding)
    torch.testing.assert_close(found, expected * wanted)


@pytest.mark.parametrize("name", ["carafe", "carafe_naive"])
@pytest.mark.parametrize(("kernel", "groups", "scale"), [(3, 1, 2), (5, 2, 1), (1, 2, 3)])
def test_carafe_is_a_weighed_sum_of_neighbours(name, kernel, groups, scale, monkeypatch):
    module = over_plain("carafe", monkeypatch)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)  # mmcv's function of the naive form insists on it
    features, masks = numbers(2, 4, 3, 5), numbers(2, groups * kernel**2, 3 * scale, 5 * scale, seed=1)

    def definition(features, masks):
        columns = F.unfold(features, kernel, padding=kernel // 2).view(2, groups, 4 // groups, kernel**2, 3, 5)
        near = columns.repeat_interleave(scale, 4).repeat_interleave(scale, 5)
        weights = masks.view(2, groups, 1, kernel**2, 3 * scale, 5 * scale)
        return (near * weights).sum(3).flatten(1, 2)

    function = getattr(module, name)
    found = with_gradients(lambda *inputs: function(*inputs, kernel, groups, scale), features, masks)
    torch.testing.assert_close(found, with_gradients(definition, features, masks))


@pytest.mark.parametrize("kind", ["collect", "distribute"])
def test_a_psa_mask_is_spread_around_its_pixel(kind, monkeypatch):
    module = over_plain("psa_mask", monkeypatch)
    masks = numbers(2, 15, 4, 3)  # 5 rows, 3 columns
    found = with_gradients(module.PSAMask(kind, (5, 3)), masks)

    def definition(masks):
        spread = masks.new_zeros(2, 4, 3, 4, 3)  # batch, other pixel, pixel
        for y in range(4):
            for x in range(3):
                for row in range(5):
                    for column in range(3):
                        other_y, other_x = y + row - 2, x + column - 1
                        if 0 <= other_y < 4 and 0 <= other_x < 3:
                            spread[:, other_y, other_x, y, x] = masks[:, row * 3 + column, y, x]
        spread = spread.flatten(3).flatten(1, 2)
        return (spread if kind == "collect" else spread.transpose(1, 2)).reshape(2, 12, 4, 3)

    torch.testing.assert_close(found, with_gradients(definition, masks))


REGIONS = torch.tensor(
    [[0, 2.0, 3.0, 17.5, 20.0], [1, -6.0, 1.0, 30.0, 9.0], [0, 5.0, 5.0, 5.0, 5.0], [1, 1.0, 2.0, 12.0, 35.0]],
    dtype=torch.float64,
)


@pytest.mark.parametrize("ratio", [0, 2])
def test_deformable_pooling_without_offsets_is_roi_align(ratio, monkeypatch):
    align = importlib.import_module("mmcv.ops.roi_align").roi_align
    pool = over_plain("deform_roi_pool", monkeypatch).deform_roi_pool
    map = numbers(2, 3, 9, 8)
    found = with_gradients(lambda x: pool(x, REGIONS, None, (3, 2), 0.3, ratio, 0.1), map)
    expected = with_gradients(lambda x: align(x, REGIONS, (3, 2), 0.3, ratio, "avg", True), map)
    # The compiled operator rounds its corners to single precision.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_offset_moves_a_bin_by_a_part_of_its_region(monkeypatch):
    pool = over_plain("deform_roi_pool", monkeypatch).deform_roi_pool
    map = numbers(1, 2, 12, 12)
    region = torch.tensor([[0, 2.0, 2.0, 6.0, 4.0]], dtype=torch.float64)  # 4 wide, 2 high
    offset = torch.tensor([5.0, 10.0], dtype=torch.float64).view(1, 2, 1, 1)
    moved = region + torch.tensor([0, 2.0, 2.0, 2.0, 2.0])  # 0.1 * 4 * 5 and 0.1 * 2 * 10
    found = pool(map, region, offset, (1, 1), 1.0, 2, 0.1)
    torch.testing.assert_close(found, pool(map, moved, None, (1, 1), 1.0, 2, 0.1))


@pytest.mark.parametrize("ratio", [0, 2])
def test_gradients_of_deformable_pooling_are_those_of_differences(ratio, monkeypatch):
    pool = over_plain("deform_roi_pool", monkeypatch).deform_roi_pool
    map, offset = numbers(2, 1, 5, 4).requires_grad_(), numbers(4, 2, 2, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, o: pool(x, REGIONS, o, (2, 2), 0.15, ratio, 0.1), (map, offset))
