# ruff: noqa: F403, F405
# A tiny SegFormer in MMEngine's Python style: types are classes. No default scope is set. `{root}` is filled in.
from mmcv.transforms import LoadImageFromFile, RandomFlip, Resize
from mmengine.config import read_base
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.runner import IterBasedTrainLoop
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs, RandomCrop
from mmseg.evaluation import IoUMetric
from mmseg.models import EncoderDecoder, SegDataPreProcessor
from mmseg.models.losses import CrossEntropyLoss
from mmseg.visualization import SegLocalVisualizer

from mm_vitbackbones.backbones import MiT
from mm_vitbackbones.heads.segformer import SegFormerHead

with read_base():
    from .python_runtime import *

visualizer = dict(type=SegLocalVisualizer, vis_backends=vis_backends, name="visualizer")
crop_size = (64, 64)
model = dict(
    type=EncoderDecoder,
    data_preprocessor=dict(
        type=SegDataPreProcessor,
        mean=[120, 120, 120],
        std=[60, 60, 60],
        size=crop_size,
        pad_val=0,
        seg_pad_val=255,
        test_cfg=dict(size_divisor=32),
    ),
    backbone=dict(
        type=MiT,
        arch=dict(depths=(1, 1, 1, 1), dims=(8, 16, 16, 32), num_heads=(1, 2, 2, 4), mlp_ratios=(2, 2, 2, 2)),
    ),
    decode_head=dict(
        type=SegFormerHead,
        in_channels=[8, 16, 16, 32],
        in_index=[0, 1, 2, 3],
        channels=16,
        num_classes=9,
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        loss_decode=dict(type=CrossEntropyLoss, use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)

dataset = dict(
    type=BaseSegDataset,
    data_root="{root}",
    data_prefix=dict(img_path="images/smoke", seg_map_path="annotations/smoke"),
    img_suffix=".png",
    seg_map_suffix=".png",
    reduce_zero_label=True,
    metainfo=dict(classes=("grass", "sand", "water", "paving", "ball", "beetle", "crate", "starfish", "ring")),
)
train_pipeline = [
    dict(type=LoadImageFromFile),
    dict(type=LoadAnnotations, reduce_zero_label=True),
    dict(type=RandomCrop, crop_size=crop_size, cat_max_ratio=0.75),
    dict(type=RandomFlip, prob=0.5),
    dict(type=PackSegInputs),
]
test_pipeline = [
    dict(type=LoadImageFromFile),
    dict(type=Resize, scale=(64, 64), keep_ratio=True),
    dict(type=LoadAnnotations, reduce_zero_label=True),
    dict(type=PackSegInputs),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type=InfiniteSampler, shuffle=True),
    dataset=dict(pipeline=train_pipeline, **dataset),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(pipeline=test_pipeline, **dataset),
)
test_dataloader = val_dataloader
val_evaluator = dict(type=IoUMetric, iou_metrics=["mIoU"])
test_evaluator = val_evaluator
train_cfg = dict(type=IterBasedTrainLoop, max_iters=2, val_interval=2)
default_hooks.update(checkpoint=dict(by_epoch=False), logger=dict(log_metric_by_epoch=False))
log_processor.update(by_epoch=False)
