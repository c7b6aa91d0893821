"""NMS and soft-NMS in plain PyTorch give the indices of the compiled operators."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.operators import over_plain, random_boxes, recorded
from mm_vitbackbones.mmcv_ops import nms as plain

CASES = recorded("mmcv_ops_boxes.npz")


def cases(operator: str) -> list[str]:
    return [name for name in CASES if name.startswith(f"{operator}/")]


@pytest.fixture
def mmcv_nms(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return over_plain("nms", monkeypatch)


def check(case: dict[str, Any], boxes: torch.Tensor, indices: torch.Tensor) -> None:
    assert torch.equal(indices, case["out1"])
    torch.testing.assert_close(boxes, case["out0"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", cases("nms"))
def test_nms_keeps_the_boxes_of_the_compiled_operator(name, mmcv_nms):
    case = CASES[name]
    check(case, *mmcv_nms.nms(case["in_boxes"], case["in_scores"], **case["arg"]))


@pytest.mark.parametrize("name", cases("soft_nms"))
def test_soft_nms_gives_the_scores_of_the_compiled_operator(name, mmcv_nms):
    case = CASES[name]
    check(case, *mmcv_nms.soft_nms(case["in_boxes"], case["in_scores"], **case["arg"]))


@pytest.mark.parametrize("name", cases("batched_nms"))
def test_batched_nms_keeps_the_boxes_of_the_compiled_operator(name, mmcv_nms):
    case = CASES[name]
    arguments = dict(case["arg"])
    agnostic = arguments.pop("class_agnostic", False)
    check(
        case,
        *mmcv_nms.batched_nms(case["in_boxes"], case["in_scores"], case["in_idxs"], arguments, class_agnostic=agnostic),
    )


def nms_by_definition(boxes: torch.Tensor, scores: torch.Tensor, threshold: float, offset: int) -> list[int]:
    def area(box: list[float]) -> float:
        return (box[2] - box[0] + offset) * (box[3] - box[1] + offset)

    kept: list[int] = []
    rows = boxes.tolist()
    for index in scores.argsort(descending=True).tolist():
        for other in kept:
            a, b = rows[index], rows[other]
            width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
            height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
            if width * height > threshold * (area(a) + area(b) - width * height):
                break
        else:
            kept.append(index)
    return kept


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("tile", [(3, 5), (128, 2048)])
def test_nms_follows_its_definition_whatever_is_compared_at_once(offset, tile, monkeypatch):
    monkeypatch.setattr(plain, "TILE_CPU", tile)
    generator = torch.Generator().manual_seed(offset)
    boxes, scores = random_boxes(200, generator), torch.rand(200, generator=generator)
    kept = plain.nms(boxes, scores, 0.4, offset)
    assert kept.tolist() == nms_by_definition(boxes, scores, 0.4, offset)
    assert 20 < len(kept) < 150


def test_nms_decides_a_long_chain_of_boxes_that_overlap_with_the_next_alone():
    start = torch.arange(300.0)[:, None] * 6
    boxes = torch.cat((start, torch.zeros_like(start), start + 10, torch.full_like(start, 10)), 1)
    assert plain.nms(boxes, torch.linspace(1, 0.1, 300), 0.2, 0).tolist() == list(range(0, 300, 2))


class Largest(TorchDispatchMode):
    """Remembers how many values the largest tensor had."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                self.count = max(self.count, value.numel())
        return result


def test_memory_of_nms_does_not_grow_with_the_square_of_the_number_of_boxes():
    generator = torch.Generator().manual_seed(0)
    boxes, scores = random_boxes(12000, generator), torch.rand(12000, generator=generator)
    with Largest() as largest:
        kept = plain.nms(boxes, scores, 0.3, 0)
    assert len(kept) > 200
    assert largest.count <= 128 * 2048


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_nms_takes_boxes_of_any_precision(dtype):
    boxes = torch.tensor([[0, 0, 400, 400], [0, 0, 400, 392], [800, 0, 1200, 400]], dtype=dtype)
    scores = torch.tensor([0.5, 0.75, 0.25], dtype=dtype)
    assert plain.nms(boxes, scores, 0.5, 0).tolist() == [1, 2]


def test_no_boxes_give_no_indices():
    for indices in (
        plain.nms(torch.empty(0, 4), torch.empty(0), 0.5, 0),
        plain.softnms(torch.empty(0, 4), torch.empty(0), torch.empty(0, 5), 0.3, 0.5, 1e-3, 1, 0),
    ):
        assert indices.shape == (0,)
        assert indices.dtype == torch.long


def test_soft_nms_fills_gaps_from_the_end_as_the_compiled_operator_does():
    x = torch.tensor([0.0, 0, 0, 10, 20, 30])[:, None]
    boxes = torch.cat((x, torch.zeros_like(x), x + 5, torch.full_like(x, 5)), 1)
    scores = torch.tensor([0.9, 0.5, 0.5, 0.5, 0.5, 0.5])
    # The first takes the next two away. Of the equal ones, the last fills the first gap, the last but one the next.
    kept = plain.softnms(boxes, scores, torch.empty(6, 5), 0.3, 0.5, 0.1, 0, 0)
    assert kept.tolist() == [0, 5, 4, 3]


def test_soft_nms_leaves_the_inputs_as_they_are():
    generator = torch.Generator().manual_seed(3)
    boxes, scores = random_boxes(30, generator), torch.rand(30, generator=generator)
    before = boxes.clone(), scores.clone()
    plain.softnms(boxes, scores, torch.empty(30, 5), 0.3, 0.5, 0.2, 2, 0)
    assert torch.equal(boxes, before[0])
    assert torch.equal(scores, before[1])


def test_nms_match_lists_the_boxes_that_each_remaining_box_took(mmcv_nms):
    dets = torch.tensor(
        [[0, 0, 10, 9, 0.8], [50, 0, 60, 10, 0.6], [0, 0, 10, 10, 0.9], [0, 0, 10, 5, 0.7], [50, 0, 60, 9, 0.1]]
    )
    # The box of half the height has an IoU of exactly the threshold, and is taken.
    assert [group.tolist() for group in mmcv_nms.nms_match(dets, 0.5)] == [[2, 0, 3], [1, 4]]
    assert [group.tolist() for group in mmcv_nms.nms_match(dets.numpy(), 0.5)] == [[2, 0, 3], [1, 4]]


def test_torchvision_takes_what_it_does_alike_and_nothing_else(monkeypatch):
    calls: list[tuple[list[float], float]] = []

    def compiled(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
        calls.append((scores.tolist(), threshold))
        return torch.tensor([0])

    monkeypatch.setattr(plain, "torchvision_operators", lambda: SimpleNamespace(nms=compiled))
    boxes, scores = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4]]), torch.tensor([0.25, 0.75])
    assert plain.nms(boxes, scores, 0.7, 1).tolist() == [1]
    assert plain.nms(boxes.half(), scores.half(), 0.7, 0).tolist() == [1]
    assert not calls
    assert plain.nms(boxes, scores, 0.7, 0).tolist() == [1]
    # In mmcv's order, whatever torchvision's is among equal scores; and mmcv compares in single precision.
    assert calls == [([2.0, 1.0], float(np.float32(0.7)))]
