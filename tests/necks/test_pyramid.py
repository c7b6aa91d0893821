"""Pyramids as necks: equal to ViTDet's, of exact sizes, and in detectors and segmentors of the libraries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from torch import Tensor, nn

from helpers.official import load_fixture, relative_error
from mm_vitbackbones.backbones import DINOv2, ViT
from mm_vitbackbones.checkpoints.recognise import FAMILIES
from mm_vitbackbones.errors import ArgumentError
from mm_vitbackbones.necks.pyramid import ResizeFeaturePyramid, SimpleFeaturePyramid, TapsFeaturePyramid

KINDS = [SimpleFeaturePyramid, TapsFeaturePyramid, ResizeFeaturePyramid]
TRUNK = dict(dim=32, num_heads=2, depth=4)
kinds = pytest.mark.parametrize("kind", KINDS)


def test_levels_of_vitdet_with_the_further_one():
    fixture = load_fixture("simple_fpn")
    neck = SimpleFeaturePyramid(32, 16, num_outs=5, ceil=False)
    ours, unknown = FAMILIES["ViT"].layout("official").to_ours(fixture.state)
    assert not unknown
    neck.load_state_dict(ours)
    for map, features in zip(fixture.inputs, fixture.features, strict=True):
        levels = neck([map])
        assert len(levels) == neck.num_outs == len(features) == 5
        for level, feature in zip(levels, features, strict=True):
            assert level.shape == feature.shape
            assert relative_error(level, feature) <= 1e-5
    sum(level.square().sum() for level in levels).backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in neck.parameters())


@kinds
@pytest.mark.parametrize("size", [(64, 96), (70, 41)], ids=str)
@pytest.mark.parametrize("family", [ViT, DINOv2])
def test_equals_the_pyramid_inside_of_the_backbone(kind, size, family):
    name = {SimpleFeaturePyramid: "simple", TapsFeaturePyramid: "taps", ResizeFeaturePyramid: "resize"}[kind]
    torch.manual_seed(0)
    whole = family(TRUNK, pyramid=name).eval()
    bare = family(TRUNK, pyramid=None, taps=whole.taps).eval()
    neck = kind(32, patch_size=bare.patch_size).eval()
    state = whole.state_dict()
    bare.load_state_dict({key: tensor for key, tensor in state.items() if not key.startswith("pyramid.")})
    neck.load_state_dict({key: tensor for key, tensor in state.items() if key.startswith("pyramid.")})
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected, levels = whole(image), neck(bare(image))
    assert neck.out_channels == whole.channels[0]
    for level, other in zip(levels, expected, strict=True):
        # The neck sees no pixels, and has all cells of whole patches.
        assert torch.equal(level[:, :, : other.shape[2], : other.shape[3]], other)


@kinds
@pytest.mark.parametrize("patch_size", [8, 14, 16])
def test_sizes_are_those_of_whole_patches(kind, patch_size):
    neck = kind(8, patch_size=patch_size, num_outs=6)
    levels = neck([torch.randn(1, 8, 5, 7)])
    for level, stride in zip(levels, (4, 8, 16, 32, 64, 128), strict=True):
        expected = tuple(-(-side * patch_size // stride) for side in (5, 7))
        assert level.shape == (1, neck.out_channels, *expected)


@kinds
@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ([torch.randn(1, 8, 4, 4)] * 2, "out of .*1.* maps, and got 2"),
        ([torch.randn(1, 6, 4, 4)], "in_channels=8, and got a map of 6 channels"),
    ],
    ids=["count", "channels"],
)
def test_maps_that_do_not_suit_are_one_line(kind, maps, message):
    with pytest.raises(ArgumentError, match=message):
        kind(8)(maps)


@kinds
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(in_channels=[8, 16]), "the maps of one network have equal channels"),
        (dict(in_channels=8, num_outs=3), "num_outs=3: give 4 or more"),
    ],
    ids=["channels", "num_outs"],
)
def test_arguments_that_make_no_pyramid_are_one_line(kind, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        kind(**arguments)


def test_pairs_with_class_tokens_are_refused_in_one_line():
    backbone = ViT(TRUNK, pyramid=None, taps=[-1], with_class_token=True)
    with pytest.raises(ArgumentError, match="reads maps, and the backbone has with_class_token=True"):
        SimpleFeaturePyramid(32)(backbone(torch.randn(1, 3, 64, 64)))


def test_a_batch_norm_of_a_pyramid_can_be_synchronised():
    neck = TapsFeaturePyramid(8).train()
    map = torch.randn(2, 8, 5, 7)
    neck([map])  # running statistics of their own
    neck.eval()
    expected = neck([map])
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(neck)
    assert any(isinstance(part, nn.SyncBatchNorm) for part in converted.modules())
    for level, other in zip(converted([map]), expected, strict=True):
        torch.testing.assert_close(level, other)


def parts(dim: int) -> list[tuple[str, dict[str, Any]]]:
    return [
        ("mm_vitbackbones.SimpleFeaturePyramid", dict(in_channels=dim, out_channels=16)),
        ("mm_vitbackbones.TapsFeaturePyramid", dict(in_channels=[dim] * 4)),
    ]


@pytest.mark.mmdet
@pytest.mark.parametrize(("kind", "arguments"), parts(32), ids=lambda value: value if isinstance(value, str) else "")
def test_a_detector_of_mmdet_trains_with_it(kind, arguments):
    pytest.importorskip("mmdet")
    from mm_vitbackbones import libraries

    libraries.use("mmdet")
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    width = arguments.get("out_channels", 32)
    model = MODELS.build(
        dict(
            type="RetinaNet",
            data_preprocessor=dict(type="DetDataPreprocessor", pad_size_divisor=32),
            backbone=dict(type="mm_vitbackbones.ViT", arch=TRUNK, pyramid=None, taps=[-1], frozen_stages="all"),
            neck=dict(type=kind, num_outs=5, **arguments),
            bbox_head=dict(
                type="RetinaHead",
                num_classes=3,
                in_channels=width,
                feat_channels=16,
                stacked_convs=1,
                anchor_generator=dict(
                    type="AnchorGenerator",
                    ratios=[1.0],
                    octave_base_scale=4,
                    scales_per_octave=1,
                    strides=[4, 8, 16, 32, 64],
                ),
            ),
            train_cfg=ConfigDict(
                assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.4), allowed_border=-1, pos_weight=-1
            ),
            test_cfg=ConfigDict(score_thr=0.0, nms_pre=10, max_per_img=5, nms=dict(type="nms", iou_threshold=0.5)),
        )
    ).train()

    def batch() -> dict[str, Any]:
        sizes = dict(img_shape=(50, 70), ori_shape=(50, 70), scale_factor=(1.0, 1.0))
        objects = InstanceData(bboxes=torch.tensor([[4.0, 4.0, 40.0, 30.0]]), labels=torch.tensor([1]))
        image = torch.randint(0, 255, (3, 50, 70), dtype=torch.uint8)
        return dict(inputs=[image], data_samples=[DetDataSample(metainfo=sizes, gt_instances=objects)])

    losses = model(**model.data_preprocessor(batch(), training=True), mode="loss")
    model.parse_losses(losses)[0].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.neck.parameters())
    assert all(p.grad is None for p in model.backbone.parameters())
    assert len(model.eval().test_step(batch())[0].pred_instances) == 5


@pytest.mark.mmseg
@pytest.mark.parametrize(("kind", "arguments"), parts(32), ids=lambda value: value if isinstance(value, str) else "")
def test_a_segmentor_of_mmseg_builds_with_it(kind, arguments):
    pytest.importorskip("mmseg")
    from mm_vitbackbones import libraries

    libraries.use("mmseg")
    from mmseg.registry import MODELS

    width = arguments.get("out_channels", 32)
    model = MODELS.build(
        dict(
            type="EncoderDecoder",
            backbone=dict(type="mm_vitbackbones.DINOv2", arch=TRUNK, pyramid=None, taps=[-1]),
            neck=dict(type=kind, patch_size=14, **arguments),
            decode_head=dict(type="mm_vitbackbones.SegFormerHead", in_channels=[width] * 4, channels=8, num_classes=3),
            test_cfg=dict(mode="whole"),
        )
    ).eval()
    image: Tensor = torch.randn(1, 3, 70, 84)
    assert model(image).shape == (1, 3, 18, 21)
