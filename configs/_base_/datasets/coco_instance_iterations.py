# COCO boxes and masks for MViTv2: many scales and crops, 8 images per GPU. Runs are counted in iterations.
_base_ = "coco_instance.py"

train_dataloader = dict(
    batch_size=8,
    num_workers=8,
    sampler=dict(type="InfiniteSampler"),
    dataset=dict(pipeline={{_base_.multiscale_pipeline}}),
)
