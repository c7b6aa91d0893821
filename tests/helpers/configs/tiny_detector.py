# A detector small enough for the tests: RetinaNet with a toy PVT on 16 images. `{root}`, `{configs}` are filled in.
_base_ = ["{configs}/_base_/models/retinanet.py", "{configs}/_base_/default_runtime.py"]

model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(
        arch=dict(
            _delete_=True,  # a dict in place of a name
            depths=(1, 1, 1, 1),
            dims=(16, 16, 32, 32),
            num_heads=(1, 1, 2, 2),
            mlp_ratios=(2, 2, 2, 2),
        ),
        drop_path_rate=0.2,
        init_cfg=None,
    ),
    neck=dict(in_channels=[16, 32, 32], out_channels=16),
    bbox_head=dict(num_classes=5, in_channels=16, feat_channels=16, stacked_convs=1),
)

classes = ("ball", "beetle", "crate", "starfish", "ring")
dataset = dict(
    type="CocoDataset",
    data_root="{root}",
    ann_file="annotations/instances_smoke.json",
    data_prefix=dict(img="images/smoke/"),
    metainfo=dict(classes=classes),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(96, 96), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(96, 96), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=True),
    batch_sampler=dict(type="AspectRatioBatchSampler"),
    dataset=dict(filter_cfg=dict(filter_empty_gt=True), pipeline=train_pipeline, **dataset),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(test_mode=True, pipeline=test_pipeline, **dataset),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="CocoMetric", ann_file="{root}/annotations/instances_smoke.json", metric="bbox")
test_evaluator = val_evaluator

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=2, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3, weight_decay=1e-4))
auto_scale_lr = dict(enable=False, base_batch_size=16)
