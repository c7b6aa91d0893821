"""The libraries' own detectors and segmentors with a toy backbone of ours: one training step, one test step.

``python -m helpers.library_models FILE NAME ...`` builds models one after the other, and appends a line of JSON for
each to the file: the loss, the parameters without a gradient, and what the test step has found before any training.
"""

from __future__ import annotations

import copy
import importlib
import json
import sys
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.structures import InstanceData, PixelData

from mm_vitbackbones import libraries

DIMS = [8, 16, 24, 32]
SIZE = 128
BACKBONE = dict(
    type="mm_vitbackbones.PVTv2",
    arch=dict(
        depths=(1, 1, 1, 1), dims=tuple(DIMS), num_heads=(1, 2, 3, 4), reductions=(8, 4, 2, 1), mlp_ratios=(2,) * 4
    ),
)
FPN = {"neck.in_channels": DIMS}
THREE = {"neck.in_channels": DIMS[1:]}
LAST = {"neck.in_channels": DIMS[3:]}
QUERIES = {"num_queries": 60}
SEGMENTOR = {"decode_head.in_channels": DIMS}
AUXILIARY = {"auxiliary_head.in_channels": DIMS[2]}
ALL, LATER = (0, 1, 2, 3), (1, 2, 3)

DETECTORS: dict[str, tuple[str, tuple[int, ...], Mapping[str, Any]]] = {
    "RetinaNet": ("retinanet/retinanet_r50_fpn_1x_coco", ALL, FPN),
    "FCOS": ("fcos/fcos_r50-caffe_fpn_gn-head_1x_coco", ALL, FPN),
    "ATSS": ("atss/atss_r50_fpn_1x_coco", ALL, FPN),
    "GFL": ("gfl/gfl_r50_fpn_1x_coco", ALL, FPN),
    "TOOD": ("tood/tood_r50_fpn_1x_coco", ALL, FPN),
    "VFNet": ("vfnet/vfnet_r50_fpn_1x_coco", ALL, FPN),
    "VFNet, deformable": ("vfnet/vfnet_r50-mdconv-c3-c5_fpn_ms-2x_coco", ALL, FPN),
    "RepPoints": ("reppoints/reppoints-moment_r50_fpn_1x_coco", ALL, FPN),
    "FoveaBox, aligned": ("foveabox/fovea_r50_fpn_gn-head-align_4xb4-2x_coco", ALL, FPN),
    "DyHead": ("dyhead/atss_r50_fpn_dyhead_1x_coco", ALL, {"neck.0.in_channels": DIMS}),
    "Guided Anchoring": ("guided_anchoring/ga-retinanet_r50-caffe_fpn_1x_coco", ALL, FPN),
    "Faster R-CNN": ("faster_rcnn/faster-rcnn_r50_fpn_1x_coco", ALL, FPN),
    "Faster R-CNN, CARAFE": ("carafe/faster-rcnn_r50_fpn-carafe_1x_coco", ALL, FPN),
    "Faster R-CNN, deformable pooling": ("dcn/faster-rcnn_r50_fpn_dpool_1x_coco", ALL, FPN),
    "Faster R-CNN, modulated pooling": ("dcnv2/faster-rcnn_r50_fpn_mdpool_1x_coco", ALL, FPN),
    "Mask R-CNN": ("mask_rcnn/mask-rcnn_r50_fpn_1x_coco", ALL, FPN),
    "Cascade Mask R-CNN": ("cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco", ALL, FPN),
    "Cascade R-CNN, soft-nms": (
        "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco",
        ALL,
        {**FPN, "test_cfg.rcnn.nms": dict(type="soft_nms", iou_threshold=0.5, min_score=0.01)},
    ),
    "PointRend": ("point_rend/point-rend_r50-caffe_fpn_ms-1x_coco", ALL, FPN),
    "YOLOF": ("yolof/yolof_r50-c5_8xb8-1x_coco", (3,), {"neck.in_channels": DIMS[3]}),
    "DETR": ("detr/detr_r50_8xb2-150e_coco", (3,), LAST),
    "Conditional DETR": ("conditional_detr/conditional-detr_r50_8xb2-50e_coco", (3,), LAST),
    "DAB-DETR": ("dab_detr/dab-detr_r50_8xb2-50e_coco", (3,), LAST),
    "Deformable DETR": ("deformable_detr/deformable-detr_r50_16xb2-50e_coco", LATER, THREE),
    "DINO": ("dino/dino-4scale_r50_8xb2-12e_coco", LATER, {**THREE, **QUERIES}),
    "DDQ": ("ddq/ddq-detr-4scale_r50_8xb2-12e_coco", LATER, {**THREE, **QUERIES}),
    "RTMDet": ("rtmdet/rtmdet_s_8xb32-300e_coco", LATER, THREE),
    "RTMDet-Ins": ("rtmdet/rtmdet-ins_s_8xb32-300e_coco", LATER, THREE),
    "MaskFormer": ("maskformer/maskformer_r50_ms-16xb1-75e_coco", ALL, {"panoptic_head.in_channels": DIMS}),
    "Mask2Former": ("mask2former/mask2former_r50_8xb2-lsj-50e_coco", ALL, {"panoptic_head.in_channels": DIMS}),
}
"""For each detector: the config of MMDetection, the backbone's outputs, and what the backbone changes in the config."""

SEGMENTORS: dict[str, tuple[str, tuple[int, ...], Mapping[str, Any]]] = {
    "UPerNet": ("upernet/upernet_r50_4xb4-80k_ade20k-512x512", ALL, {**SEGMENTOR, **AUXILIARY}),
    "SegFormer": ("segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512", ALL, SEGMENTOR),
    "FPN": ("sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512", ALL, FPN),
    "PSPNet": ("pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512", ALL, {"decode_head.in_channels": DIMS[3], **AUXILIARY}),
    "DeepLabV3+": (
        "deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512",
        ALL,
        {"decode_head.in_channels": DIMS[3], "decode_head.c1_in_channels": DIMS[0], **AUXILIARY},
    ),
    "OCRNet": (
        "ocrnet/ocrnet_hr18_4xb4-80k_ade20k-512x512",
        ALL,
        {
            "decode_head.0.in_channels": DIMS,
            "decode_head.0.channels": sum(DIMS),
            "decode_head.1.in_channels": DIMS,
        },
    ),
    "PointRend (segmentor)": ("point_rend/pointrend_r50_4xb4-160k_ade20k-512x512", ALL, FPN),
    "PSANet": (
        "psanet/psanet_r50-d8_4xb4-80k_ade20k-512x512",
        ALL,
        {"decode_head.in_channels": DIMS[3], "decode_head.mask_size": (7, 7), **AUXILIARY},
    ),
    "CCNet": ("ccnet/ccnet_r50-d8_4xb4-80k_ade20k-512x512", ALL, {"decode_head.in_channels": DIMS[3], **AUXILIARY}),
    "Segmenter": (
        "segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k-512x512",
        (3,),
        {"decode_head.in_channels": DIMS[3], "test_cfg": dict(mode="whole")},
    ),
    "K-Net": (
        "knet/knet-s3_r50-d8_upernet_8xb2-adamw-80k_ade20k-512x512",
        ALL,
        {"decode_head.kernel_generate_head.in_channels": DIMS, **AUXILIARY},
    ),
    "MaskFormer (segmentor)": ("maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512", ALL, SEGMENTOR),
    "Mask2Former (segmentor)": ("mask2former/mask2former_r50_8xb2-160k_ade20k-512x512", ALL, SEGMENTOR),
}
"""The same for MMSegmentation."""


def library_of(name: str) -> str:
    return "mmdet" if name in DETECTORS else "mmseg"


def build(name: str) -> tuple[Any, bool]:
    """The model, with seeded weights, and whether its config loads masks."""
    config, indices, changes = (DETECTORS | SEGMENTORS)[name]
    library = library_of(name)
    libraries.use(library)
    package = importlib.import_module(library)
    folder = Path(package.__file__ or "").parent / ".mim" / "configs"
    whole = Config.fromfile(folder / f"{config}.py")
    whole.merge_from_dict({f"model.{key}": value for key, value in changes.items()})
    cfg = whole.model
    cfg.pop("pretrained", None)
    cfg.backbone = dict(copy.deepcopy(BACKBONE), out_indices=indices)
    if "batch_augments" in cfg.data_preprocessor:
        cfg.data_preprocessor.batch_augments = None  # they pad images to 1024
    if library == "mmseg":
        cfg.data_preprocessor.size = (SIZE, SIZE)
    torch.manual_seed(0)
    registry = importlib.import_module(f"{library}.registry").MODELS
    model = revert_sync_batchnorm(registry.build(cfg))
    model.init_weights()
    pipeline = whole.train_dataloader.dataset.get("pipeline") or whole.train_pipeline
    return model, any(step.get("with_mask", False) for step in pipeline)


def batch(library: str, with_masks: bool) -> dict[str, Any]:
    """Two images of noise, with two rectangles on each."""
    generator = torch.Generator().manual_seed(1)
    images = [torch.randint(0, 256, (3, SIZE, SIZE), generator=generator, dtype=torch.uint8) for _ in range(2)]
    boxes = torch.tensor([[8.0, 12.0, 60.0, 90.0], [50.0, 20.0, 120.0, 70.0]])
    samples = []
    for number in range(2):
        meta = dict(
            img_id=number, img_shape=(SIZE, SIZE), ori_shape=(SIZE, SIZE), pad_shape=(SIZE, SIZE),
            batch_input_shape=(SIZE, SIZE), scale_factor=(1.0, 1.0), flip=False,
        )  # fmt: skip
        if library == "mmdet":
            from mmdet.structures import DetDataSample
            from mmdet.structures.mask import BitmapMasks

            masks = np.zeros((2, SIZE, SIZE), np.uint8)
            for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
                mask[top:bottom, left:right] = 1
            sample = DetDataSample(metainfo=meta)
            sample.gt_instances = InstanceData(bboxes=boxes.clone(), labels=torch.tensor([3, 17]))
            if with_masks:
                sample.gt_instances.masks = BitmapMasks(masks, SIZE, SIZE)
            sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
            semantic = torch.zeros(1, SIZE, SIZE, dtype=torch.long) + 3
            sample.gt_sem_seg = PixelData(sem_seg=semantic)
        else:
            from mmseg.structures import SegDataSample

            sample = SegDataSample(metainfo=meta)
            semantic = torch.zeros(1, SIZE, SIZE, dtype=torch.long)
            semantic[:, 20:90, 10:60], semantic[:, 40:, 70:] = 5, 11
            sample.gt_sem_seg = PixelData(data=semantic)
        samples.append(sample)
    return {"inputs": images, "data_samples": samples}


def find(model: Any, library: str) -> list[list[float]]:
    """What a test step finds on an image: boxes and scores, or logits, all thresholds of scores being zero."""
    for config in _configs(getattr(model, "test_cfg", None)):
        if "score_thr" in config:
            config["score_thr"] = 0.0
    for module in model.modules():
        for config in _configs(getattr(module, "test_cfg", None)):
            if "score_thr" in config:
                config["score_thr"] = 0.0
    model.eval()
    # One image: mmcv's masked convolution takes no more.
    image = {key: value[:1] for key, value in batch(library, with_masks=False).items()}
    with torch.no_grad():
        results = model.test_step(image)
    found = []
    for sample in results:
        numbers = _numbers(sample, library)
        found.append([round(float(number), 5) for number in numbers.flatten()])
    return found


def _numbers(sample: Any, library: str) -> torch.Tensor:
    """Boxes and scores, the map of a panoptic detector, or a segmentor's logits."""
    if library == "mmseg":
        return sample.seg_logits.data[:, ::16, ::16]
    if "pred_panoptic_seg" in sample:
        return sample.pred_panoptic_seg.sem_seg[..., ::16, ::16].float()
    return torch.cat([sample.pred_instances.bboxes, sample.pred_instances.scores[:, None]], 1)


def _configs(config: Any) -> list[dict[str, Any]]:
    """A config and all configs in it."""
    if not isinstance(config, dict):
        return []
    return [config, *(inner for value in config.values() for inner in _configs(value))]


def try_out(name: str) -> dict[str, Any]:
    library = library_of(name)
    model, with_masks = build(name)
    found = find(model, library)
    model.train()
    MessageHub.get_current_instance().update_info("epoch", 0)  # TOOD asks for it
    torch.manual_seed(2)
    data = model.data_preprocessor(batch(library, with_masks), True)
    losses = model(**data, mode="loss")
    loss, _ = model.parse_losses(losses)
    loss.backward()
    parameters = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    return {
        "loss": float(loss),
        "found": found,
        "without_gradient": [key for key, parameter in parameters.items() if parameter.grad is None],
        "not_finite": [key for key, of in parameters.items() if of.grad is not None and not of.grad.isfinite().all()],
    }


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    path, names = Path(sys.argv[1]), sys.argv[2:] or [*DETECTORS, *SEGMENTORS]
    libraries.load("mmdet")
    for name in names:
        try:
            result = try_out(name)
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        extension = importlib.import_module("mmcv._ext")
        with path.open("a") as file:
            file.write(json.dumps({"name": name, "extension": str(extension.__file__), **result}) + "\n")


if __name__ == "__main__":
    main()
