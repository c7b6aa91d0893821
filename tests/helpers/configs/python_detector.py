# ruff: noqa: F403, F405
# The tiny detector in MMEngine's Python style: types are classes. No default scope is set. `{root}` is filled in.
from mmcv.ops import nms
from mmcv.transforms import LoadImageFromFile, TestTimeAug
from mmdet.datasets import AspectRatioBatchSampler, CocoDataset
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, RandomFlip, Resize
from mmdet.evaluation import CocoMetric
from mmdet.models import FPN, DetDataPreprocessor, DetTTAModel, RetinaHead, RetinaNet
from mmdet.models.losses import FocalLoss, L1Loss
from mmdet.models.task_modules import AnchorGenerator, DeltaXYWHBBoxCoder, MaxIoUAssigner, PseudoSampler
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import read_base
from mmengine.dataset import DefaultSampler
from mmengine.runner import EpochBasedTrainLoop

from mm_vitbackbones.backbones import PVT

with read_base():
    from .python_runtime import *

visualizer = dict(type=DetLocalVisualizer, vis_backends=vis_backends, name="visualizer")
num_classes = 5
model = dict(
    type=RetinaNet,
    data_preprocessor=dict(type=DetDataPreprocessor, mean=[120, 120, 120], std=[60, 60, 60], pad_size_divisor=32),
    backbone=dict(
        type=PVT,
        arch=dict(depths=(1, 1, 1, 1), dims=(16, 16, 32, 32), num_heads=(1, 1, 2, 2), mlp_ratios=(2, 2, 2, 2)),
        out_indices=(1, 2, 3),
    ),
    neck=dict(
        type=FPN, in_channels=[16, 32, 32], out_channels=16, start_level=0, add_extra_convs="on_input", num_outs=5
    ),
    bbox_head=dict(
        type=RetinaHead,
        num_classes=5,
        in_channels=16,
        feat_channels=16,
        stacked_convs=1,
        anchor_generator=dict(
            type=AnchorGenerator,
            octave_base_scale=4,
            scales_per_octave=3,
            ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64, 128],
        ),
        bbox_coder=dict(type=DeltaXYWHBBoxCoder, target_means=[0.0] * 4, target_stds=[1.0] * 4),
        loss_cls=dict(type=FocalLoss, use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type=L1Loss, loss_weight=1.0),
    ),
    train_cfg=dict(
        assigner=dict(type=MaxIoUAssigner, pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1),
        sampler=dict(type=PseudoSampler),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    ),
    test_cfg=dict(nms_pre=100, min_bbox_size=0, score_thr=0.0, nms=dict(type=nms, iou_threshold=0.5), max_per_img=10),
)

classes = ("ball", "beetle", "crate", "starfish", "ring")
dataset = dict(
    type=CocoDataset,
    data_root="{root}",
    ann_file="annotations/instances_smoke.json",
    data_prefix=dict(img="images/smoke/"),
    metainfo=dict(classes=classes),
)
train_pipeline = [
    dict(type=LoadImageFromFile),
    dict(type=LoadAnnotations, with_bbox=True),
    dict(type=Resize, scale=(64, 64), keep_ratio=True),
    dict(type=RandomFlip, prob=0.5),
    dict(type=PackDetInputs),
]
keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
test_pipeline = [
    dict(type=LoadImageFromFile),
    dict(type=Resize, scale=(64, 64), keep_ratio=True),
    dict(type=LoadAnnotations, with_bbox=True),
    dict(type=PackDetInputs, meta_keys=keys),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=True),
    batch_sampler=dict(type=AspectRatioBatchSampler),
    dataset=dict(filter_cfg=dict(filter_empty_gt=True), pipeline=train_pipeline, **dataset),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(test_mode=True, pipeline=test_pipeline, **dataset),
)
test_dataloader = val_dataloader
val_evaluator = dict(type=CocoMetric, ann_file="{root}/annotations/instances_smoke.json", metric="bbox")
test_evaluator = val_evaluator
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=1, val_interval=1)
tta_model = dict(type=DetTTAModel, tta_cfg=dict(nms=dict(type=nms, iou_threshold=0.5), max_per_img=10))
tta_pipeline = [
    dict(type=LoadImageFromFile),
    dict(
        type=TestTimeAug,
        transforms=[
            [dict(type=Resize, scale=(64, 64), keep_ratio=True)],
            [dict(type=RandomFlip, prob=1.0), dict(type=RandomFlip, prob=0.0)],
            [dict(type=LoadAnnotations, with_bbox=True)],
            [dict(type=PackDetInputs, meta_keys=(*keys, "flip", "flip_direction"))],
        ],
    ),
]
