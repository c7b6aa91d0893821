# Mask R-CNN of MViTv2 (Li et al. 2022).
_base_ = "mask_rcnn.py"

model = dict(
    backbone=dict(type="mm_vitbackbones.MViTv2", drop_path_rate=0.2),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
