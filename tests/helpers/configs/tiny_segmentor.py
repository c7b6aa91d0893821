# A segmentor small enough for the tests: a toy SegFormer on 16 images. `{root}`, `{configs}` are filled in.
_base_ = [
    "{configs}/_base_/models/segformer.py",
    "{configs}/_base_/datasets/mini_segmentation.py",
    "{configs}/_base_/optimizers/small_segmentation.py",
    "{configs}/_base_/schedules/small_2200_iterations.py",
    "{configs}/_base_/segmentation_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(
        arch=dict(depths=(1, 1, 1, 1), dims=(8, 16, 16, 32), num_heads=(1, 2, 2, 4), mlp_ratios=(2, 2, 2, 2)),
        drop_path_rate=0.2,
        init_cfg=None,
    ),
    decode_head=dict(num_classes=9, in_channels=[8, 16, 16, 32], channels=16),
)

crop_size = (64, 64)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="RandomResize", scale=(96, 96), ratio_range=(0.8, 1.25), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
folders = dict(img_path="images/smoke", seg_map_path="annotations/smoke")
train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root="{root}", data_prefix=folders, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1, num_workers=0, persistent_workers=False, dataset=dict(data_root="{root}", data_prefix=folders)
)
test_dataloader = val_dataloader
train_cfg = dict(max_iters=4, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=2, max_keep_ckpts=3), logger=dict(interval=1))
