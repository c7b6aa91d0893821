# COCO 2017 boxes and masks under data/coco, as mmdet reads them, 2 images per GPU: 1333x800 at most, flipped half of
# the time. `multiscale_pipeline` is the strong augmentation of the Swin, CoaT and PVTv2 papers.
_base_ = "coco_detection.py"

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=(1333, 800), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
any_scale = dict(
    type="RandomChoiceResize",
    scales=[(1333, side) for side in (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)],
    keep_ratio=True,
)
multiscale_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomFlip", prob=0.5),
    dict(
        type="RandomChoice",
        transforms=[
            [any_scale],
            [
                # The long side is free here: the crop takes its part of it.
                dict(type="RandomChoiceResize", scales=[(4200, side) for side in (400, 500, 600)], keep_ratio=True),
                dict(type="RandomCrop", crop_type="absolute_range", crop_size=(384, 600), allow_negative_crop=True),
                any_scale,
            ],
        ],
    ),
    dict(type="PackDetInputs"),
]
# The shorter side from 640 to 800 pixels, as the PVT paper's 3x runs have it.
short_side_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomResize", scale=[(1333, 640), (1333, 800)], keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(1333, 800), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(metric=["bbox", "segm"])
test_evaluator = val_evaluator
