# On DINOv2 crops of 512 pixels are padded to 37 patches of 14, and there is no dropout.
_base_ = "linear.py"

model = dict(
    data_preprocessor=dict(size=(518, 518), test_cfg=dict(size_divisor=14)),
    backbone=dict(type="mm_vitbackbones.DINOv2", init_cfg=dict(checkpoint="lvd142m")),
    decode_head=dict(dropout_ratio=0.0),
    test_cfg=dict(crop_size=(518, 518)),
)
