# COCO boxes and masks for Mask2Former: crops of 1024x1024 out of images at 0.1 to 2 times that (large-scale jittering).
# The detector pads them to `same_size`. Runs are counted in iterations.
_base_ = "coco_instance.py"

crop_size = (1024, 1024)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomResize", scale=crop_size, ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(
        type="RandomCrop",
        crop_type="absolute",
        crop_size=crop_size,
        recompute_bbox=True,  # around what the crop leaves of a mask
        allow_negative_crop=True,
    ),
    dict(type="FilterAnnotations", min_gt_bbox_wh=(1e-5, 1e-5), by_mask=True),
    dict(type="PackDetInputs"),
]
same_size = [dict(type="BatchFixedSizePad", size=crop_size, pad_mask=True)]

train_dataloader = dict(sampler=dict(type="InfiniteSampler"), dataset=dict(pipeline=train_pipeline))
