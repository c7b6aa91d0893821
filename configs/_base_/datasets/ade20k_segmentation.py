# ADE20K's 150 classes under data/ade/ADEChallengeData2016, as mmseg reads them, 2 images per GPU: crops of 512x512 out
# of images at 0.5 to 2 times 2048x512. `--tta` tests at six scales, flipped and not.
data_root = "data/ade/ADEChallengeData2016/"
num_classes = 150
crop_size = (512, 512)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="RandomResize", scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
# Both sides rounded up to a multiple of 32, which the published figures of SegFormer and PVT need.
align = dict(type="ResizeToMultiple", size_divisor=32)
load_labels = dict(type="LoadAnnotations", reduce_zero_label=True)  # after the resizing: labels keep their size
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(2048, 512), keep_ratio=True),
    align,
    load_labels,
    dict(type="PackSegInputs"),
]
unaligned_test_pipeline = [transform for transform in test_pipeline if transform is not align]

scales = [(1024, 256), (1536, 384), (2048, 512), (2560, 640), (3072, 768), (3584, 896)]
tta_transforms = [
    [dict(type="Resize", scale=scale, keep_ratio=True) for scale in scales],
    [align],
    [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0, direction="horizontal")],
    [load_labels],
    [dict(type="PackSegInputs")],
]
tta_pipeline = [dict(type="LoadImageFromFile"), dict(type="TestTimeAug", transforms=tta_transforms)]
unaligned_tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="TestTimeAug", transforms=[step for step in tta_transforms if step != [align]]),
]

train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="ADE20KDataset",
        data_root=data_root,
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="ADE20KDataset",
        data_root=data_root,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
