"""Files of detectors are compared with their networks box by box: nothing wrong passes, and a near tie does."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("mmdet")

from helpers import exported
from helpers.exported import AsFile
from mm_vitbackbones.exporting import checking, choices
from mm_vitbackbones.exporting.checking import Checked
from mm_vitbackbones.exporting.half import Half, HalfPrecision
from mm_vitbackbones.exporting.networks import Network, network_of, outputs_of

pytestmark = pytest.mark.mmdet

NAMES = ["retinanet", "fcos", "atss", "yolof", "faster_rcnn", "mask_rcnn", "cascade_mask_rcnn", "dino"]

SIZE = (2, 50, 91)


@functools.cache
def network(name: str) -> Network:
    """It is not changed by any test."""
    return network_of(getattr(exported, name)(), with_nms=True)


@functools.cache
def half(name: str) -> nn.Module:
    return Half(network(name).module).eval()


def changed(name: str, change: Callable[[Any], Any]) -> AsFile:
    """The file of another network."""
    model = getattr(exported, name)()
    change(model)
    return AsFile(network_of(model, with_nms=True).module)


def checked(name: str, file: AsFile, in_half: bool = False, size: tuple[int, int, int] = SIZE) -> Checked:
    return checking.check(network(name), file, [size], in_half)[0]


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_within_its_tolerance_box_by_box(name: str) -> None:
    found = checked(name, AsFile(half(name)), in_half=True)
    assert 1e-5 < found.error < 1e-2, found
    assert found.boxes is not None
    assert found.boxes > 10


class Altered(AsFile):
    """A file with other results, which changes those of the first image."""

    def __init__(self, module: nn.Module, change: Callable[..., Any]) -> None:
        super().__init__(module)
        self.change = change

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        found = tuple(each.clone() for each in super().__call__(image))
        self.change(*found)
        return found


def shift_a_class(boxes: Tensor, scores: Tensor, labels: Tensor, *masks: Tensor) -> None:
    """By 3 % of the image."""
    boxes[labels == labels[0, 0]] += 0.03 * SIZE[2]


def change_a_label(boxes: Tensor, scores: Tensor, labels: Tensor, *masks: Tensor) -> None:
    labels[0, 3] = (labels[0, 3] + 1) % 3


def drop_a_box(boxes: Tensor, scores: Tensor, labels: Tensor, *masks: Tensor) -> None:
    boxes[0, 3], scores[0, 3], labels[0, 3] = 0, 0, -1


def swap_two_boxes(boxes: Tensor, *others: Tensor) -> None:
    boxes[0, :2] = boxes[0, [1, 0]]


def make_no_number(boxes: Tensor, scores: Tensor, *others: Tensor) -> None:
    scores[0, 0] = torch.nan


@pytest.mark.parametrize(
    ("name", "in_half"),
    [("retinanet", False), ("retinanet", True), ("mask_rcnn", False), ("mask_rcnn", True), ("dino", True)],
)
@pytest.mark.parametrize("change", [shift_a_class, change_a_label, drop_a_box, swap_two_boxes, make_no_number])
def test_wrong_results_are_refused(change: Callable[..., Any], name: str, in_half: bool) -> None:
    module = half(name) if in_half else network(name).module
    found = checked(name, Altered(module, change), in_half)
    assert found.error > checking.TOLERANCE[in_half]
    assert found.what.startswith("most of all in its ")


def test_masks_are_compared() -> None:
    def change(boxes: Tensor, scores: Tensor, labels: Tensor, masks: Tensor) -> None:
        masks[0, 2] = masks[0, 2].flip(1)

    assert checked("mask_rcnn", Altered(network("mask_rcnn").module, change)).what == "most of all in its masks"


def of_rpn(**changes: Any) -> Callable[[Any], Any]:
    return lambda model: model.rpn_head.test_cfg.update(changes)


def of_boxes(**changes: Any) -> Callable[[Any], Any]:
    return lambda model: getattr(model, "roi_head", model).test_cfg.update(changes)


def of_head(**changes: Any) -> Callable[[Any], Any]:
    return lambda model: model.bbox_head.test_cfg.update(changes)


NMS = "nms"


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("retinanet", of_head(nms=dict(type=NMS, iou_threshold=0.4)), "a score of .* is left out"),
        ("retinanet", of_head(nms=dict(type=NMS, iou_threshold=0.7)), "two boxes overlap by more than NMS leaves"),
        ("retinanet", of_head(score_thr=0.5), "a score of .* is left out"),
        ("retinanet", of_head(min_bbox_size=40), "a score of .* is left out"),
        ("retinanet", of_head(nms_pre=40), "other choices than the network makes"),
        ("fcos", of_head(nms=dict(type=NMS, iou_threshold=0.2)), "a score of .* is left out"),
        ("mask_rcnn", of_rpn(nms=dict(type=NMS, iou_threshold=0.5)), "a score of .* is left out"),
        ("mask_rcnn", of_rpn(nms=dict(type=NMS, iou_threshold=0.9)), "two boxes overlap by more than NMS leaves"),
        ("mask_rcnn", of_boxes(nms=dict(type=NMS, iou_threshold=0.3)), "a score of .* is left out"),
        ("mask_rcnn", of_boxes(score_thr=0.9), "a score of .* is left out"),
        ("cascade_mask_rcnn", of_rpn(max_per_img=29), "other choices than the network makes"),
    ],
)
def test_other_choices_are_refused(name: str, change: Callable[[Any], Any], what: str) -> None:
    found = checked(name, changed(name, change))
    assert found.error == float("inf")
    assert re.search(what, found.what)


def test_boxes_that_are_all_left_out_are_missed() -> None:
    found = checked("retinanet", changed("retinanet", of_head(score_thr=0.9999)))
    assert found.error == float("inf")
    assert checked("retinanet", AsFile(network("retinanet").module)).boxes == 40


def test_image_without_boxes_is_said() -> None:
    model = exported.retinanet()
    model.bbox_head.test_cfg.score_thr = 0.9999
    empty = network_of(model, with_nms=True)
    assert checking.check(empty, AsFile(empty.module), [SIZE])[0] == Checked(SIZE, 0.0, "0 boxes", 0)


@pytest.mark.parametrize("part", ["rpn_head.rpn_reg", "rpn_head.rpn_cls", "roi_head.bbox_head.fc_cls"])
def test_other_weights_are_refused(part: str) -> None:
    def change(model: Any) -> None:
        model.get_submodule(part).weight.data.mul_(1.01)

    assert 1e-4 < checked("mask_rcnn", changed("mask_rcnn", change)).error < 0.1


def test_a_near_tie_may_go_the_other_way() -> None:
    """The scores of proposals are equal but for 1e-6, so a file may choose any of them; its boxes are others then."""

    def level(model: Any, noise: float) -> Network:
        torch.manual_seed(1)
        nn.init.normal_(model.rpn_head.rpn_cls.weight, std=noise)
        return network_of(model, with_nms=True)

    both = level(exported.mask_rcnn(), 0.0), level(exported.mask_rcnn(), 1e-6)
    image = checking.noise(both[0], SIZE)
    expected, found = (outputs_of(each, image)[0] for each in both)
    assert float((expected - found).abs().max()) > 10
    result = checking.check(both[0], AsFile(both[1].module), [SIZE])[0]
    assert result.error < 1e-4, result
    assert re.fullmatch(r"20 boxes, \d+ of \d+ choices otherwise", result.what)


WIDE = (1, 40, 1400)
"""Numbers in half precision have steps of 1 above 1024."""


REGRESSIONS = {"retina_reg", "conv_reg", "atss_reg", "bbox_pred", "rpn_reg", "fc_reg"}


def with_constant_deltas(model: Any) -> Any:
    """Whatever the maps are, the boxes are the anchors moved by numbers that half precision has."""
    layers = [part for name, part in model.named_modules() if name.rpartition(".")[2] in REGRESSIONS]
    layers += [branch[-1] for branch in getattr(getattr(model, "bbox_head", None), "reg_branches", [])]
    assert layers
    for layer in layers:
        nn.init.zeros_(layer.weight)
        with torch.no_grad():
            layer.bias.copy_(torch.arange(len(layer.bias)) % 4 / 4 + 17 / 64)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_coordinates_have_no_half_precision(name: str) -> None:
    wide = network_of(with_constant_deltas(getattr(exported, name)()), with_nms=True)
    image = checking.noise(wide, WIDE)
    (boxes, _, labels, *_), made = AsFile(Half(wide.module).eval()).followed(image)
    with choices.following(made, 2e-2, WIDE[1:]) as followed:
        expected = outputs_of(wide, image)[0]
    assert not followed.wrong
    inside = boxes[labels >= 0]
    assert float(inside.max()) > 1100
    assert float((inside - inside.half().float()).abs().max()) > 0.05  # they are no numbers of half precision
    torch.testing.assert_close(boxes, expected, rtol=0, atol=2e-3)
    for regions in made.regions:
        assert regions.dtype == torch.float32


def test_regions_are_read_at_coordinates_of_single_precision() -> None:
    """A map whose values are the columns, which half precision has: a region's mean is its centre."""
    regions = network("mask_rcnn").module.box_regions[0]
    maps = [torch.arange(1400.0).expand(1, 1, 40, 1400) for _ in regions.scales]
    left = torch.tensor([1001.3, 1100.7, 1201.1])
    boxes = torch.stack((left, left * 0 + 2, left + 4, left * 0 + 6), -1)[None]
    with HalfPrecision():
        found = regions([each.half() for each in maps], boxes, torch.ones(1, 3, dtype=torch.bool))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.mean((1, 2, 3)), (left + 2) * regions.scales[0] - 0.5, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_scores_have_no_half_precision(name: str) -> None:
    """Many of them would be equal then, and their order chance."""
    scores = AsFile(half(name))(checking.noise(network(name), SIZE))[1]
    assert float((scores != scores.half().float()).float().mean()) > 0.5


def test_score_of_a_sure_object_is_a_number_in_half_precision() -> None:
    """YOLOF takes the exponential of its scores: that of 12 is more than half precision has."""
    model = exported.yolof()
    nn.init.constant_(model.bbox_head.cls_score.bias, 12)
    nn.init.constant_(model.bbox_head.object_pred.bias, 13)
    sure = network_of(model, with_nms=True)
    found = checking.check(sure, AsFile(Half(sure.module).eval()), [SIZE], half=True)[0]
    assert found.error < 2e-2
    assert found.boxes is not None
    assert found.boxes > 30
