"""What the file of a detector or segmentor computes is what the libraries' own prediction gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mmdet.structures import DetDataSample
from mmseg.structures import SegDataSample

from helpers.exported import (
    atss,
    cascade_mask_rcnn,
    centernet,
    dino,
    faster_rcnn,
    fcos,
    mask_rcnn,
    photographs,
    retinanet,
    segformer,
    yolof,
)
from helpers.paths import CONFIGS
from mm_vitbackbones import libraries
from mm_vitbackbones.cli.config import load_config
from mm_vitbackbones.cli.model import build_model
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.exporting import export
from mm_vitbackbones.exporting.files import KINDS
from mm_vitbackbones.exporting.networks import network_of, outputs_of

pytestmark = [pytest.mark.mmdet, pytest.mark.mmseg]


def predicted(model: Any, image: Tensor, sample: Any = DetDataSample) -> Any:
    size = tuple(image.shape[1:])
    meta = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0), img_id=0)
    with torch.no_grad():
        return model.test_step({"inputs": [image], "data_samples": [sample(metainfo=meta)]})[0]


def exported(model: Any, images: list[Tensor], **options: Any) -> tuple[Tensor, ...]:
    """The networks take red, green, blue."""
    return outputs_of(network_of(model, preprocess=True, **options), torch.stack(images).flip(1).float())


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")  # MMDetection's own, of a cascade's masks
@pytest.mark.parametrize("make", [retinanet, fcos, atss, yolof, mask_rcnn, cascade_mask_rcnn, dino])
def test_boxes_are_those_of_the_prediction(make: Any) -> None:
    model = make()
    for image in photographs():
        expected = predicted(model, image).pred_instances
        boxes, scores, labels, *masks = exported(model, [image], with_nms=True)
        count = len(expected)
        assert count == int((labels >= 0).sum()) == int((scores > 0).sum()) > 5
        assert labels[0, :count].tolist() == expected.labels.tolist()
        torch.testing.assert_close(boxes[0, :count], expected.bboxes, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(scores[0, :count], expected.scores, rtol=1e-4, atol=1e-5)
        if masks:
            assert_masks(masks[0][0, :count], expected)


def assert_masks(masks: Tensor, expected: Any) -> None:
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

    height, width = expected.masks.shape[1:]
    pasted, _ = _do_paste_mask(masks[:, None], expected.bboxes, height, width, skip_empty=False)
    assert 0 < expected.masks.float().mean() < 1
    assert float(((pasted >= 0.5) == expected.masks).float().mean()) > 0.999


def test_images_of_a_batch_are_independent() -> None:
    model = retinanet()
    image = photographs()[1]
    both = exported(model, [image, image.flip(2)], with_nms=True)
    for index, each in enumerate((image, image.flip(2))):
        for together, alone in zip(both, exported(model, [each], with_nms=True), strict=True):
            torch.testing.assert_close(together[index], alone[0], rtol=1e-4, atol=1e-3)


def test_what_is_below_the_threshold_is_no_box() -> None:
    model = retinanet()
    model.bbox_head.test_cfg.score_thr = 0.999999
    boxes, scores, labels = exported(model, photographs()[:1], with_nms=True)
    assert boxes.count_nonzero() == scores.count_nonzero() == 0
    assert labels.tolist() == [[-1] * 20]


@pytest.mark.parametrize(
    ("make", "kinds", "levels"),
    [
        (retinanet, ("scores", "deltas"), 5),
        (fcos, ("scores", "deltas", "factors"), 5),
        (atss, ("scores", "deltas", "factors"), 5),
        (yolof, ("scores", "deltas"), 1),
    ],
)
def test_raw_maps_are_those_of_the_head(make: Any, kinds: tuple[str, ...], levels: int) -> None:
    model = make()
    image = photographs()[1]
    network = network_of(model, preprocess=True)
    assert network.outputs == tuple(f"{kind}{level}" for kind in kinds for level in range(levels))
    found = outputs_of(network, image[None].flip(1).float())
    with torch.no_grad():
        batch = model.data_preprocessor({"inputs": [image], "data_samples": [DetDataSample()]})["inputs"]
        expected = [map for kind in model(batch, mode="tensor") for map in kind]
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want)


def test_head_with_a_prediction_of_its_own_gives_its_maps_alone() -> None:
    model = centernet()
    network = network_of(model)
    assert network.outputs == ("kind0_level0", "kind1_level0", "kind2_level0")
    assert [map.shape[1] for map in outputs_of(network, torch.zeros(1, 3, 64, 64))] == [3, 2, 2]
    with pytest.raises(
        UserError, match=r"CenterNetHead makes boxes of its maps in a way of its own.*without --with-nms"
    ):
        network_of(model, with_nms=True)


def test_labels_are_those_of_the_prediction() -> None:
    model = segformer()
    for image in photographs():
        expected = predicted(model, image, SegDataSample).pred_sem_seg.data[0]
        assert len(expected.unique()) > 1
        (labels,) = exported(model, [image], labels=True)
        (scores,) = exported(model, [image])
        assert float((labels[0] == expected).float().mean()) > 0.999
        assert scores.shape == (1, 4, *image.shape[1:])
        assert torch.equal(scores.argmax(1), labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(nms=dict(type="soft_nms", iou_threshold=0.5)), "test_cfg.nms=.*a file takes dict"),
        (dict(nms=dict(type="nms", iou_threshold=0.5, max_num=3)), "test_cfg.nms=.*a file takes dict"),
    ],
)
def test_another_suppression_is_refused(change: dict[str, Any], message: str) -> None:
    model = retinanet()
    model.bbox_head.test_cfg.update(change)
    with pytest.raises(UserError, match=message):
        network_of(model, with_nms=True)


def test_options_that_a_network_cannot_follow_are_refused() -> None:
    with pytest.raises(UserError, match=r"second stage works on boxes.*--with-nms"):
        network_of(mask_rcnn())
    with pytest.raises(UserError, match=r"with_nms: a segmentor gives no boxes"):
        network_of(segformer(), with_nms=True)
    with pytest.raises(UserError, match=r"labels: a detector gives no maps of labels"):
        network_of(retinanet(), labels=True)
    with pytest.raises(UserError, match=r"Linear is no backbone of this package"):
        network_of(torch.nn.Linear(1, 1))


def test_windows_of_a_config_are_a_note() -> None:
    model = segformer(test_cfg=dict(mode="slide", crop_size=(64, 64), stride=(43, 43)))
    assert "in windows of 64x64" in network_of(model).notes[0]


def test_image_with_fewer_cells_than_queries_is_one_line() -> None:
    model = dino()
    network = network_of(model)
    assert network.smallest == 33
    assert [tuple(x.shape) for x in outputs_of(network, torch.zeros(1, 3, 33, 33))] == [(1, 40, 3), (1, 40, 4)]
    with pytest.raises(UserError, match=r"image of 32x32 has 22 cells in all levels, fewer than the 40 queries"):
        outputs_of(network, torch.zeros(1, 3, 32, 32))


# ---- their files, which take a minute each

NMS: dict[str, Any] = dict(with_nms=True)
HALF: dict[str, Any] = dict(with_nms=True, half=True)
FIXED: dict[str, Any] = dict(fixed=True, size=(64, 96))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "to", "options"),
    [
        (fcos, "onnx", NMS),
        (fcos, "onnx", {}),
        (fcos, "torch-export", NMS),
        (atss, "onnx", NMS),
        (atss, "torch-export", {}),
        (yolof, "onnx", NMS),
        (yolof, "torch-export", NMS),
        (cascade_mask_rcnn, "onnx", NMS),
        (cascade_mask_rcnn, "torch-export", NMS),
        (dino, "onnx", {}),
        (dino, "onnx", dict(HALF, opset=18)),
        (dino, "onnx", dict(NMS, **FIXED)),
        (dino, "torch-export", NMS),
        (dino, "torch-export", HALF),
        (faster_rcnn, "torch-export", NMS),
        (retinanet, "onnx", HALF),
        (fcos, "onnx", HALF),
        (atss, "onnx", HALF),
        (yolof, "onnx", HALF),
        (faster_rcnn, "onnx", HALF),
        (mask_rcnn, "onnx", HALF),
        (mask_rcnn, "torch-export", HALF),
        (cascade_mask_rcnn, "onnx", HALF),
    ],
)
def test_files_are_right_at_all_sizes(make: Any, to: str, options: dict[str, Any], tmp_path: Path) -> None:
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    done = export(make(), tmp_path / f"toy{KINDS[to]}", to=to, **options)
    assert done.error < (2e-2 if options.get("half") else 1e-4)
    assert len(done.checked) == (1 if options.get("fixed") else 6)
    if options.get("with_nms"):
        assert all(each.boxes > 5 for each in done.checked)
    else:
        assert all(each.boxes is None for each in done.checked)


@pytest.mark.slow
def test_dino_of_a_recipe_is_right_at_all_sizes(tmp_path: Path) -> None:
    """900 queries, six layers, random weights."""
    pytest.importorskip("onnxruntime")
    libraries.use("mmdet")
    torch.manual_seed(0)
    model = build_model(load_config(CONFIGS / "dino_pvt_v2_b2_coco.py", {})).eval()
    torch.nn.init.normal_(model.level_embed)  # else whatever memory holds
    done = export(model, tmp_path / "dino.onnx", with_nms=True)
    assert done.error < 1e-4
    assert [each.boxes for each in done.checked] == [600, 300, 900, 300, 900, 300]
