"""200 random cases of each operator that mmcv has for CPUs: its Python side over the compiled operators, and over the
plain ones."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from helpers.lite import needs_compiled_mmcv
from helpers.operators import random_boxes, with_gradients
from mm_vitbackbones.mmcv_ops import extension

pytestmark = [
    pytest.mark.slow,
    pytest.mark.parity,
    needs_compiled_mmcv,
]

CASES = range(200)


def both(module: ModuleType, monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> tuple[Any, Any]:
    """What a call gives over the compiled operators, and what it gives over the plain ones."""
    compiled = call()
    with monkeypatch.context() as patch:
        patch.setattr(module, "ext_module", extension.module())
        return compiled, call()


def draw(generator: torch.Generator, *choices: Any) -> Any:
    return choices[int(torch.randint(len(choices), (), generator=generator))]


def scored_boxes(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
    """Boxes and scores, and the generator. In some cases on whole pixels, without area, or with equal scores."""
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(400, (), generator=generator))
    boxes, scores = random_boxes(count, generator), torch.rand(count, generator=generator)
    if draw(generator, False, False, True):
        boxes = (boxes / 8).round() * 8
    if draw(generator, False, False, True):
        scores = (scores * 20).round() / 20
    return boxes, scores, generator


@pytest.mark.parametrize("seed", CASES)
def test_nms(seed, monkeypatch):
    module = importlib.import_module("mmcv.ops.nms")
    boxes, scores, generator = scored_boxes(seed)
    threshold, offset = draw(generator, 0.25, 0.5, 0.7), draw(generator, 0, 1)
    score, most = draw(generator, 0, 0.3), draw(generator, -1, 20)
    expected, found = both(module, monkeypatch, lambda: module.nms(boxes, scores, threshold, offset, score, most))
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[0], expected[0])


@pytest.mark.parametrize("seed", CASES)
def test_soft_nms(seed, monkeypatch):
    module = importlib.import_module("mmcv.ops.nms")
    boxes, scores, generator = scored_boxes(seed)
    arguments = dict(
        iou_threshold=draw(generator, 0.3, 0.5),
        sigma=draw(generator, 0.3, 0.5),
        min_score=draw(generator, 1e-3, 0.05, 0.3),
        method=draw(generator, "naive", "linear", "gaussian"),
        offset=draw(generator, 0, 1),
    )
    expected, found = both(module, monkeypatch, lambda: module.soft_nms(boxes, scores, **arguments))
    assert torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("seed", CASES)
def test_nms_match(seed, monkeypatch):
    module = importlib.import_module("mmcv.ops.nms")
    boxes, scores, generator = scored_boxes(seed)
    dets, threshold = torch.cat((boxes, scores[:, None]), 1), draw(generator, 0.25, 0.5, 0.7)
    expected, found = both(module, monkeypatch, lambda: module.nms_match(dets, threshold))
    assert [group.tolist() for group in found] == [group.tolist() for group in expected]


@pytest.mark.parametrize("seed", CASES)
def test_bbox_overlaps(seed, monkeypatch):
    module = importlib.import_module("mmcv.ops.bbox")
    first, _, generator = scored_boxes(seed)
    second = random_boxes(len(first), generator)
    arguments = dict(mode=draw(generator, "iou", "iof"), aligned=draw(generator, True, False), offset=seed % 2)
    expected, found = both(module, monkeypatch, lambda: module.bbox_overlaps(first, second, **arguments))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("seed", CASES)
def test_roi_align(seed, monkeypatch):
    module = importlib.import_module("mmcv.ops.roi_align")
    generator = torch.Generator().manual_seed(seed)

    def below(most: int) -> int:
        return 1 + int(torch.randint(most, (), generator=generator))

    images, height, width, count = below(3), below(30), below(30), below(12)
    scale = draw(generator, 1.0, 0.5, 0.25, 0.125)
    span = torch.tensor([width, height]) / scale
    start = (torch.rand(count, 2, generator=generator) * 1.4 - 0.2) * span  # over the borders, too
    # At least a hundredth of a cell: of no samples the compiled maximum is -10000, and ours is zero.
    sides = torch.rand(count, 2, generator=generator) * span + 0.01 / scale
    image = torch.randint(images, (count, 1), generator=generator)
    rois = torch.cat((image, start, start + sides), 1)
    size, mode = (below(7), below(7)), draw(generator, "avg", "max")
    arguments = (size, scale, draw(generator, 0, 0, 1, 2, 3), mode, draw(generator, True, False))
    input = torch.randn(images, below(5), height, width, generator=generator, requires_grad=True)
    weight = torch.randn(count, input.shape[1], *size, generator=generator)

    def call() -> tuple[torch.Tensor, torch.Tensor]:
        output = module.roi_align(input, rois, *arguments)
        return output.detach(), torch.autograd.grad((output * weight).sum(), input)[0]

    expected, found = both(module, monkeypatch, call)
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("modulated", [False, True], ids=["plain", "modulated"])
@pytest.mark.parametrize("seed", CASES)
def test_deformable_convolution(seed, modulated, monkeypatch):
    module = importlib.import_module(f"mmcv.ops.{'modulated_' * modulated}deform_conv")
    generator = torch.Generator().manual_seed(seed)
    groups, parts = draw(generator, 1, 2), draw(generator, 1, 2, 4)
    kernel = (draw(generator, 1, 2, 3), draw(generator, 1, 2, 3))
    stride, dilation = ((draw(generator, 1, 2), draw(generator, 1, 2)) for _ in range(2))
    padding = (draw(generator, 0, 1, 2), draw(generator, 0, 1, 2))
    height, width = (draw(generator, 5, 6, 9) for _ in range(2))
    input = torch.randn(draw(generator, 1, 2), 4, height, width, generator=generator)
    weight = torch.randn(6, 4 // groups, *kernel, generator=generator)
    rows, columns = F.conv2d(input, weight, None, stride, padding, dilation, groups).shape[2:]
    taps = kernel[0] * kernel[1] * parts
    offset = 1.5 * torch.randn(len(input), 2 * taps, rows, columns, generator=generator)
    tensors = [input, offset, weight]
    if modulated:
        mask = torch.rand(len(input), taps, rows, columns, generator=generator)
        tensors = [input, offset, mask, weight, torch.randn(6, generator=generator)]
    convolve = getattr(module, f"{'modulated_' * modulated}deform_conv2d")

    def call() -> list[torch.Tensor]:
        return with_gradients(lambda *given: convolve(*given, stride, padding, dilation, groups, parts), *tensors)

    expected, found = both(module, monkeypatch, call)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1:], expected[1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", CASES)
def test_psa_mask(seed, monkeypatch):
    module = importlib.import_module("mmcv.ops.psa_mask")
    generator = torch.Generator().manual_seed(seed)
    mask = (draw(generator, 1, 3, 5, 7), draw(generator, 1, 3, 5, 7))
    size = (draw(generator, 1, 2, 5, 6), draw(generator, 1, 2, 5, 6))
    input = torch.randn(draw(generator, 1, 2), mask[0] * mask[1], *size, generator=generator)
    kind = draw(generator, 0, 1)
    expected, found = both(module, monkeypatch, lambda: with_gradients(lambda x: module.psa_mask(x, kind, mask), input))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
