"""Toy detectors and segmentors to export, whose random weights find something in every image."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from helpers.paths import CONFIGS
from mm_vitbackbones import libraries
from mm_vitbackbones.backbones import MiT
from mm_vitbackbones.cli.model import build_model
from mm_vitbackbones.exporting.choices import Choices
from mm_vitbackbones.exporting.detectors import stages
from mm_vitbackbones.exporting.programs import Watch

BACKBONE = dict(
    type="mm_vitbackbones.PVTv2",
    arch=dict(depths=(1, 1, 1, 1), dims=(8, 16, 16, 32), num_heads=(1, 1, 2, 2), mlp_ratios=(2, 2, 2, 2)),
    init_cfg=None,
)
NORM = dict(type="GN", num_groups=4)
NECK = dict(type="FPN", in_channels=[8, 16, 16, 32], out_channels=16, num_outs=5)


def one_stage_of_mit() -> MiT:
    """It is traced in a moment."""
    torch.manual_seed(0)
    spec = dict(depths=(1, 1, 1, 1), dims=(16, 16, 32, 32), num_heads=(1, 1, 2, 2), mlp_ratios=(2, 2, 2, 2))
    return MiT(arch=spec, out_indices=(0,))


def retinanet() -> Any:
    """Three classes."""
    model = _build(_one_stage("retinanet"))
    _spread(model.bbox_head.retina_cls, 0.03)
    return model


def fcos() -> Any:
    """Three classes; boxes are distances from points, and a third kind of maps is the centerness."""
    cfg = _one_stage("fcos")
    cfg.model.bbox_head.norm_cfg = NORM
    model = _build(cfg)
    head = model.bbox_head
    for layer, deviation in ((head.conv_cls, 0.3), (head.conv_reg, 0.1), (head.conv_centerness, 0.3)):
        _spread(layer, deviation)
    return model


def atss() -> Any:
    """Three classes; one anchor in each place, and a third kind of maps is the centerness."""
    cfg = _one_stage("retinanet")
    cfg.model.type = "ATSS"
    cfg.model.bbox_head.update(
        type="ATSSHead",
        norm_cfg=NORM,
        loss_centerness=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
        anchor_generator=dict(
            type="AnchorGenerator", ratios=[1.0], octave_base_scale=8, scales_per_octave=1, strides=[8, 16, 32, 64, 128]
        ),
    )
    with warnings.catch_warnings():  # the head asks for a number by a name that its library has given up
        warnings.filterwarnings("ignore", message=".*num_anchors. is deprecated")
        model = _build(cfg)
    head = model.bbox_head
    for layer, deviation in ((head.atss_cls, 0.3), (head.atss_reg, 0.1), (head.atss_centerness, 0.3)):
        _spread(layer, deviation)
    return model


def yolof() -> Any:
    """Three classes; one level, whose places are wider than a small image is tall."""
    cfg = _one_stage("yolof")
    cfg.model.backbone.out_indices = (3,)
    cfg.model.neck.update(in_channels=32, out_channels=16, block_mid_channels=8)
    del cfg.model.bbox_head.stacked_convs
    model = _build(cfg)
    head = model.bbox_head
    for layer, deviation in ((head.cls_score, 0.1), (head.object_pred, 0.1), (head.bbox_pred, 0.03)):
        _spread(layer, deviation)
    return model


def centernet() -> Any:
    """Three classes; its head has no anchors, and finds boxes as peaks of maps."""
    cfg = _base("retinanet", "mmdet")
    head = dict(
        type="CenterNetHead",
        in_channels=32,
        feat_channels=8,
        num_classes=3,
        loss_center_heatmap=dict(type="GaussianFocalLoss"),
        loss_wh=dict(type="L1Loss"),
        loss_offset=dict(type="L1Loss"),
    )
    cfg.model.update(type="CenterNet", backbone=dict(BACKBONE, out_indices=(3,)), neck=None)
    cfg.model.bbox_head = head
    return _build(cfg)


def _one_stage(name: str) -> Any:
    """The config of a small detector with one stage."""
    cfg = _base(name, "mmdet")
    cfg.model.update(backbone=dict(BACKBONE, out_indices=(1, 2, 3)))
    cfg.model.neck.update(in_channels=[16, 16, 32], out_channels=16)
    cfg.model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1, num_classes=3)
    cfg.model.test_cfg.update(nms_pre=50, max_per_img=20, score_thr=0.01)
    return cfg


def mask_rcnn(**changes: Any) -> Any:
    """Three classes."""
    cfg = _small_two_stage("mask_rcnn")
    cfg.model.update(changes)
    return _spread_two_stage(_build(cfg))


def faster_rcnn() -> Any:
    """Three classes."""
    return _spread_two_stage(_build(_small_two_stage("faster_rcnn")))


def _small_two_stage(name: str) -> Any:
    """The config of a small detector with a second stage."""
    cfg = _base(name, "mmdet")
    cfg.model.update(backbone=BACKBONE, neck=NECK)
    cfg.model.rpn_head.update(in_channels=16, feat_channels=16)
    roi = cfg.model.roi_head
    for part in ("bbox_roi_extractor", "mask_roi_extractor") if roi.get("mask_head") else ("bbox_roi_extractor",):
        roi[part].out_channels = 16
    for head in roi.bbox_head if isinstance(roi.bbox_head, list) else [roi.bbox_head]:
        head.update(in_channels=16, fc_out_channels=32, num_classes=3)
    if roi.get("mask_head"):
        roi.mask_head.update(in_channels=16, conv_out_channels=16, num_classes=3, num_convs=1)
    cfg.model.test_cfg.rpn.update(nms_pre=50, max_per_img=30)
    cfg.model.test_cfg.rcnn.update(max_per_img=10)
    return cfg


def _spread_two_stage(model: Any) -> Any:
    _spread(model.rpn_head.rpn_cls, 0.3)
    for head in stages(model.roi_head.bbox_head):
        _spread(head.fc_cls, 0.3)
        _spread(head.fc_reg, 0.05)
    for head in stages(model.roi_head.mask_head) if model.roi_head.with_mask else []:
        _spread(head.conv_logits, 0.5)
    return model


def cascade_mask_rcnn() -> Any:
    """Three classes and three stages, each with boxes of its own classes."""
    cfg = _small_two_stage("cascade_mask_rcnn")
    for head in cfg.model.roi_head.bbox_head:
        head.update(conv_out_channels=16, num_shared_convs=1, norm_cfg=dict(type="BN"))
    return _spread_two_stage(_build(cfg))


def dino(**changes: Any) -> Any:
    """Three classes, 40 queries; one layer of encoder, two of decoder. DINO has 256 channels in any config."""
    cfg = _base("dino", "mmdet")
    cfg.model.update(
        backbone=dict(BACKBONE, out_indices=(1, 2, 3)),
        neck=dict(cfg.model.neck, in_channels=[16, 16, 32]),
        num_queries=40,
    )
    for part, layers in (("encoder", 1), ("decoder", 2)):
        cfg.model[part].num_layers = layers
        cfg.model[part].layer_cfg.ffn_cfg.feedforward_channels = 32
    cfg.model.bbox_head.num_classes = 3
    cfg.model.test_cfg.max_per_img = 20
    cfg.model.update(changes)
    model = _build(cfg)
    nn.init.normal_(model.level_embed)  # else whatever memory holds
    for branch in model.bbox_head.reg_branches:
        _spread(branch[-1], 0.1)
    for branch in model.bbox_head.cls_branches:
        _spread(branch, 0.1)
    for layer in (*model.encoder.layers, *model.decoder.layers):
        attention = getattr(layer, "cross_attn", layer.self_attn)
        _spread(attention.sampling_offsets, 0.1)
        _spread(attention.attention_weights, 0.1)
    return model.eval()


def segformer(**changes: Any) -> Any:
    """Four classes."""
    cfg = _base("segformer", "mmseg")
    cfg.model.update(backbone=dict(BACKBONE, type="mm_vitbackbones.MiT"))
    cfg.model.decode_head.update(in_channels=[8, 16, 16, 32], channels=16, num_classes=4, norm_cfg=dict(type="BN"))
    cfg.model.update(changes)
    model = _build(cfg)
    _spread(model.decode_head.conv_seg, 0.5)
    return model


def mask2former(name: str = "mask2former_segmentation") -> Any:
    """Three classes, 12 queries, one layer of encoder and four of decoder, so that one level is looked at twice; or of
    instances, as "mask2former"."""
    instances = name == "mask2former"
    cfg = _base(name, "mmdet" if instances else "mmseg")
    cfg.model.backbone = BACKBONE
    head = cfg.model.panoptic_head if instances else cfg.model.decode_head
    head.update(in_channels=[8, 16, 16, 32], feat_channels=32, out_channels=32, num_queries=12)
    head.loss_cls.class_weight = [1.0] * 3 + [0.1]
    head.update(dict(num_things_classes=3, num_stuff_classes=0) if instances else dict(num_classes=3))
    pixels, decoder = head.pixel_decoder, head.transformer_decoder
    pixels.norm_cfg.num_groups = 4
    pixels.encoder.num_layers, decoder.num_layers = 1, 4
    attention = dict(embed_dims=32, num_heads=4)
    pixels.encoder.layer_cfg.self_attn_cfg.update(attention)
    pixels.encoder.layer_cfg.ffn_cfg.update(embed_dims=32, feedforward_channels=32)
    decoder.layer_cfg.ffn_cfg.update(embed_dims=32, feedforward_channels=32)
    for part in ("self_attn_cfg", "cross_attn_cfg"):
        decoder.layer_cfg[part].update(attention)
    for part in (pixels, head):
        part.positional_encoding.num_feats = 16
    if instances:
        cfg.model.panoptic_fusion_head.num_things_classes = 3
    model = _build(cfg)
    head = model.panoptic_head if instances else model.decode_head
    _spread(head.cls_embed, 0.5)
    for layer in head.pixel_decoder.encoder.layers:
        _spread(layer.self_attn.sampling_offsets, 0.1)
        _spread(layer.self_attn.attention_weights, 0.1)
    return model


def segmentor(name: str) -> Any:
    """A segmentor of configs/_base_/models, with three or four classes."""
    return {"segformer": segformer, "mask2former_segmentation": mask2former}.get(name, lambda: _small_segmentor(name))()


def _small_segmentor(name: str) -> Any:
    """Four classes."""
    cfg = _base(name, "mmseg")
    cfg.model.decode_head.update(num_classes=4, channels=8, norm_cfg=dict(type="BN"))
    if cfg.model.backbone.get("pyramid", True) is None:
        column = dict(dim=16, num_heads=2, depth=4, pretrain_grid=3)
        cfg.model.backbone.update(type="mm_vitbackbones.ViT", arch=column, init_cfg=None)
        cfg.model.decode_head.in_channels = [16] * len(cfg.model.decode_head.in_channels)
        if name == "linear":
            del cfg.model.decode_head.channels  # as many as its input
    else:
        cfg.model.update(backbone=BACKBONE, auxiliary_head=None)
        cfg.model.decode_head.in_channels = [8, 16, 16, 32]
    if "neck" in cfg.model:
        cfg.model.neck.update(in_channels=[8, 16, 16, 32], out_channels=8)
        cfg.model.decode_head.in_channels = [8] * 4
    model = _build(cfg)
    _spread(model.decode_head.conv_seg, 0.5)
    return model


def _base(name: str, scope: str) -> Any:
    libraries.use(scope)
    cfg = Config.fromfile(CONFIGS / "_base_" / "models" / f"{name}.py")
    cfg.default_scope = scope
    return cfg


def _build(cfg: Any) -> Any:
    torch.manual_seed(0)
    return build_model(cfg).eval()


def _spread(layer: nn.Module, deviation: float) -> None:
    assert isinstance(layer.weight, Tensor)
    nn.init.normal_(layer.weight, std=deviation)


def run_file(path: Path) -> Callable[[Tensor], list[Tensor]]:
    """A file by its runtime alone."""
    if path.suffix == ".onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda image: [torch.from_numpy(x) for x in session.run(None, {"image": image.numpy()})]
    module = torch.export.load(path).module()
    return lambda image: tree_leaves(module(image))


def photographs() -> list[Tensor]:
    """Three images (3, H, W), blue, green, red, uint8: of an odd size, of one that needs no padding, and a wide one."""
    generator = torch.Generator().manual_seed(0)
    small = [torch.rand(3, h // 8 + 1, w // 8 + 1, generator=generator) for h, w in ((70, 91), (64, 96), (33, 128))]
    sizes = ((70, 91), (64, 96), (33, 128))
    return [
        (nn.functional.interpolate(each[None], size, mode="bilinear")[0] * 255).to(torch.uint8)
        for each, size in zip(small, sizes, strict=True)
    ]


class AsFile:
    """A network as if it were its own file: nothing is written."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            found = self.network(image)
        return (found,) if isinstance(found, Tensor) else tuple(found)

    def followed(self, image: Tensor) -> tuple[tuple[Tensor, ...], Choices]:
        with Watch() as watch:
            return self(image), watch.choices
