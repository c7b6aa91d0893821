"""Files of segmentors with each kind of head: they hold the libraries' own prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from torch import Tensor

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mmdet.structures import DetDataSample
from mmseg.models.utils import Upsample, resize
from mmseg.structures import SegDataSample

from helpers.exported import mask2former, photographs, segmentor
from helpers.paths import CONFIGS
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.exporting import export, programs
from mm_vitbackbones.exporting.files import KINDS
from mm_vitbackbones.exporting.networks import network_of, outputs_of

pytestmark = [pytest.mark.mmdet, pytest.mark.mmseg]

HEADS = {
    "dpt": "mm_vitbackbones.DPTHead",
    "linear": "mm_vitbackbones.LinearHead",
    "mask2former_segmentation": "Mask2FormerHead",
    "segformer": "mm_vitbackbones.SegFormerHead",
    "semantic_fpn": "FPNHead",
    "upernet": "UPerHead",
}
"""A part of the recipes for each kind of head."""


def test_each_kind_of_head_is_exported_here() -> None:
    heads = set()
    for path in (CONFIGS / "_base_/models").glob("*.py"):
        heads.add(Config.fromfile(path).model.get("decode_head", {}).get("type"))
    assert heads - {None} == set(HEADS.values())


def sample_of(kind: Any, image: Tensor) -> Any:
    size = tuple(image.shape[1:])
    return kind(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0), img_id=0))


@pytest.mark.parametrize("name", HEADS)
def test_scores_and_labels_are_those_of_the_prediction(name: str) -> None:
    model = segmentor(name)
    model.test_cfg.update(mode="whole", logits=True)
    found: set[int] = set()
    for image in photographs():
        with torch.no_grad():
            expected = model.test_step({"inputs": [image], "data_samples": [sample_of(SegDataSample, image)]})[0]
        pixels = image[None].flip(1).float()
        (scores,) = outputs_of(network_of(model, preprocess=True), pixels)
        torch.testing.assert_close(scores[0], expected.seg_logits.data, rtol=1e-5, atol=1e-5)
        (labels,) = outputs_of(network_of(model, preprocess=True, labels=True), pixels)
        assert torch.equal(labels, scores.argmax(1))
        found |= {*labels.unique().tolist()}
    assert len(found) > 1


def test_queries_of_a_mask2former_are_those_of_its_head() -> None:
    model = mask2former("mask2former")
    network = network_of(model, preprocess=True)
    assert network.outputs == ("scores", "masks")
    for image in photographs():
        data = {"inputs": [image], "data_samples": [sample_of(DetDataSample, image)]}
        with torch.no_grad():
            data = model.data_preprocessor(data)
            scores, masks = model(**data, mode="tensor")
        assert 0.1 < float((masks[-1] > 0).float().mean()) < 0.9
        for got, want in zip(outputs_of(network, image[None].flip(1).float()), (scores[-1], masks[-1]), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_options_that_a_mask2former_cannot_follow_are_refused() -> None:
    model = mask2former("mask2former")
    with pytest.raises(UserError, match=r"with_nms: Mask2Former has no NMS; its file gives the scores and masks"):
        network_of(model, with_nms=True)
    with pytest.raises(UserError, match=r"labels: a detector gives no maps of labels"):
        network_of(model, labels=True)
    model.panoptic_head.pixel_decoder.forward = None
    model.panoptic_head.pixel_decoder.__class__ = type("Other", (type(model.panoptic_head.pixel_decoder),), {})
    with pytest.raises(UserError, match=r"Mask2Former is no backbone of this package"):
        network_of(model)


class Sized(torch.nn.Module):
    """What heads of MMSegmentation do with sizes of maps."""

    def __init__(self) -> None:
        super().__init__()
        self.larger, self.areas = Upsample(scale_factor=2, mode="bilinear"), torch.nn.AdaptiveAvgPool2d(3)
        self.all = torch.nn.AdaptiveAvgPool2d(1)

    def forward(self, map: Tensor) -> Tensor:
        large = self.larger(map)
        size = large.shape[2:]
        return large * self.all(map) + resize(self.areas(map), size=size, mode="bilinear", align_corners=True)


@pytest.mark.filterwarnings("ignore:When align_corners=True")  # of the library, in the eager run
def test_sizes_of_maps_stay_open_in_a_trace() -> None:
    before = Upsample.forward, resize.__defaults__
    program = programs.trace(Sized(), torch.randn(2, 3, 40, 56), fixed=False).module()
    assert (Upsample.forward, resize.__defaults__) == before
    for size in ((1, 3, 32, 33), (3, 3, 75, 41)):
        map = torch.randn(size)
        torch.testing.assert_close(program(map), Sized()(map))


# ---- their files, which take a minute each


@pytest.mark.slow
@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("name", HEADS)
def test_files_are_right_at_all_sizes(name: str, to: str, tmp_path: Path) -> None:
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    done = export(segmentor(name), tmp_path / f"toy{KINDS[to]}", to=to, preprocess=True)
    assert done.error < 1e-4
    assert len(done.checked) == 6


@pytest.mark.slow
@pytest.mark.parametrize("to", KINDS)
def test_files_of_a_mask2former_for_instances_are_right_at_all_sizes(to: str, tmp_path: Path) -> None:
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    assert export(mask2former("mask2former"), tmp_path / f"toy{KINDS[to]}", to=to).error < 1e-4
