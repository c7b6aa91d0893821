"""RoIAlign in plain PyTorch: values and gradients of the compiled operator, and its definition."""

from __future__ import annotations

import math
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.operators import over_plain, recorded
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.mmcv_ops import roi_align as plain

CASES = {name: case for name, case in recorded("mmcv_ops_boxes.npz").items() if name.startswith("roi_align/")}

ROIS = torch.tensor(
    [
        [0, 1.5, 2, 9, 14],
        [1, 0, 0, 30, 24],  # more samples than one
        [1, -12, -9, 4, 3],  # over the border
        [0, 20, 16, 60, 70],
        [1, 5, 5, 5, 5],  # without width or height
        [0, 200, 3, 210, 9],  # outside
    ]
)


@pytest.fixture
def mmcv_roi_align(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return over_plain("roi_align", monkeypatch)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_compiled_operator(name, memory_format, mmcv_roi_align):
    case = CASES[name]
    input = case["in_input"].contiguous(memory_format=memory_format).requires_grad_()
    output = mmcv_roi_align.RoIAlign(**case["arg"])(input, case["in_rois"])
    torch.testing.assert_close(output, case["out0"], rtol=0, atol=1e-5)
    (gradient,) = torch.autograd.grad((output * case["in_w"]).sum(), input)
    torch.testing.assert_close(gradient, case["grad_input"], rtol=0, atol=1e-4)


def sample(channel: torch.Tensor, y: float, x: float) -> float:
    height, width = channel.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    above = channel[top, left] * (1 - (x - left)) + channel[top, right] * (x - left)
    below = channel[bottom, left] * (1 - (x - left)) + channel[bottom, right] * (x - left)
    return float(above * (1 - (y - top)) + below * (y - top))


def by_definition(
    input: torch.Tensor, rois: torch.Tensor, size: tuple[int, int], scale: float, ratio: int, mode: str, aligned: bool
) -> torch.Tensor:
    output = torch.zeros(len(rois), input.shape[1], *size, dtype=torch.float64)
    shift = 0.5 if aligned else 0.0
    for number, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        top, left = y1 * scale - shift, x1 * scale - shift
        height, width = (y2 - y1) * scale, (x2 - x1) * scale
        if not aligned:
            height, width = max(height, 1.0), max(width, 1.0)
        high, wide = height / size[0], width / size[1]
        rows, columns = (ratio, ratio) if ratio > 0 else (math.ceil(high), math.ceil(wide))
        for channel in range(input.shape[1]):
            for i in range(size[0]):
                for j in range(size[1]):
                    samples = [
                        sample(
                            input[int(image), channel],
                            top + high * (i + (a + 0.5) / rows),
                            left + wide * (j + (b + 0.5) / columns),
                        )
                        for a in range(rows)
                        for b in range(columns)
                    ]
                    if samples:
                        output[number, channel, i, j] = max(samples) if mode == "max" else sum(samples) / len(samples)
    return output


@pytest.mark.parametrize("block", [1, 2**22])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 1, 3])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_bins_follow_the_definition(mode, ratio, aligned, block, mmcv_roi_align, monkeypatch):
    monkeypatch.setattr(plain, "BLOCK", block)
    input = torch.randn(2, 2, 12, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    arguments = ((3, 2), 0.5, ratio, mode, aligned)
    output = mmcv_roi_align.roi_align(input, ROIS.double(), *arguments)
    torch.testing.assert_close(output, by_definition(input, ROIS, *arguments))


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_gradient_is_that_of_the_values(mode, ratio, mmcv_roi_align):
    input = torch.randn(1, 1, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    rois = torch.tensor([[0, -3, 2, 9, 14], [0, 0, 0, 30, 24]], dtype=torch.float64)

    def function(map: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = mmcv_roi_align.roi_align(map, rois, (1, 2), 0.25, ratio, mode, True)
        return output

    assert torch.autograd.gradcheck(function, input.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_half_precision_is_rounded_once(dtype, mode, mmcv_roi_align):
    input = torch.randn(2, 3, 12, 15, generator=torch.Generator().manual_seed(3)).to(dtype)
    arguments = ((3, 2), 0.5, 0, mode, True)
    exact = mmcv_roi_align.roi_align(input.float(), ROIS, *arguments)
    low = input.requires_grad_()
    output = mmcv_roi_align.roi_align(low, ROIS, *arguments)
    assert torch.equal(output, exact.to(dtype))
    (gradient,) = torch.autograd.grad(output.float().sum(), low)
    assert gradient.dtype == dtype
    assert bool(gradient.isfinite().all())


def test_no_regions_give_no_bins_and_no_gradient(mmcv_roi_align):
    input = torch.randn(1, 2, 4, 4, requires_grad=True)
    output = mmcv_roi_align.roi_align(input, torch.empty(0, 5), (2, 2))
    assert output.shape == (0, 2, 2, 2)
    output.sum().backward()
    assert input.grad is not None
    assert not input.grad.any()


def test_region_of_negative_size_is_one_clear_error(mmcv_roi_align):
    rois = torch.tensor([[0.0, 0, 0, 2, 2], [0, 3, 1, 2, 2]])
    with pytest.raises(UserError, match="region 1 has a negative width or height"):
        mmcv_roi_align.roi_align(torch.zeros(1, 1, 4, 4), rois, (2, 2))


def test_torchvision_is_asked_for_means_in_full_precision_on_a_gpu_alone(monkeypatch):
    monkeypatch.setattr(plain, "torchvision_operators", lambda: "torchvision")
    map: Any = SimpleNamespace(dtype=torch.float32, device=torch.device("cuda"))
    assert plain._compiled(map, pool_mode=1) == "torchvision"
    assert plain._compiled(map, pool_mode=0) is None
    map.dtype = torch.float16
    assert plain._compiled(map, pool_mode=1) is None
    assert plain._compiled(torch.zeros(1), pool_mode=1) is None
