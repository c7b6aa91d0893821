# An encoder with SegFormer's decoder on all four levels (Xie et al. 2021).
_base_ = "encoder_decoder.py"

model = dict(
    data_preprocessor=dict(test_cfg=dict(size_divisor=32)),
    backbone=dict(type="mm_vitbackbones.MiT"),
    decode_head=dict(type="mm_vitbackbones.SegFormerHead"),
)
