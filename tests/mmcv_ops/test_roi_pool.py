"""RoIPool in plain PyTorch follows its definition. mmcv compiles it for GPUs alone."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch

from helpers.operators import over_plain

ROIS = torch.tensor(
    [
        [0, 1, 2, 9, 14],
        [1, 0, 0, 29, 23],
        [1, -12, -9, 4, 3],  # over the border
        [0, 20, 16, 60, 70],
        [1, 5, 5, 5, 5],  # one pixel
        [0, 200, 3, 210, 9],  # outside
        [0, 9, 9, 3, 20],  # without width
    ]
)


@pytest.fixture
def mmcv_roi_pool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return over_plain("roi_pool", monkeypatch)


def by_definition(input: torch.Tensor, rois: torch.Tensor, size: tuple[int, int], scale: float) -> torch.Tensor:
    height, width = input.shape[2:]
    rows = []
    for image, x1, y1, x2, y2 in rois.tolist():
        top, left, bottom, right = y1 * scale, x1 * scale, (y2 + 1) * scale, (x2 + 1) * scale
        high, wide = (bottom - top) / size[0], (right - left) / size[1]
        bins = []
        for i in range(size[0]):
            for j in range(size[1]):
                y = slice(
                    *(min(max(v, 0), height) for v in (math.floor(top + i * high), math.ceil(top + (i + 1) * high)))
                )
                x = slice(
                    *(min(max(v, 0), width) for v in (math.floor(left + j * wide), math.ceil(left + (j + 1) * wide)))
                )
                cells = input[int(image), :, y, x].flatten(1)
                usable = cells.shape[1] > 0 and high > 0 and wide > 0
                bins.append(cells.amax(1) if usable else input.new_zeros(input.shape[1]))
        rows.append(torch.stack(bins, 1).view(-1, *size))
    return torch.stack(rows)


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.125])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_bins_and_gradients_follow_the_definition(scale, memory_format, mmcv_roi_pool):
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(2, 3, 12, 15, generator=generator).contiguous(memory_format=memory_format).requires_grad_()
    weight = torch.randn(len(ROIS), 3, 3, 2, generator=generator)
    output = mmcv_roi_pool.roi_pool(input, ROIS, (3, 2), scale)
    expected = by_definition(input, ROIS, (3, 2), scale)
    assert torch.equal(output, expected)
    (gradient,) = torch.autograd.grad((output * weight).sum(), input)
    (reference,) = torch.autograd.grad((expected * weight).sum(), input)
    torch.testing.assert_close(gradient, reference)


def test_half_precision_and_no_regions(mmcv_roi_pool):
    input = torch.randn(2, 3, 12, 15, generator=torch.Generator().manual_seed(1)).half().requires_grad_()
    output = mmcv_roi_pool.roi_pool(input, ROIS, (3, 2), 0.5)
    assert torch.equal(output.float(), by_definition(input.float(), ROIS, (3, 2), 0.5))
    output.sum().backward()
    assert mmcv_roi_pool.roi_pool(input, ROIS[:0], (3, 2), 0.5).shape == (0, 3, 3, 2)
