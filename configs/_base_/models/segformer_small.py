# SegFormer from random weights: nothing is dropped.
_base_ = "segformer.py"

model = dict(
    backbone=dict(drop_path_rate=0.0, init_cfg=[dict(type="mm_vitbackbones.FromScratch")]),
    decode_head=dict(dropout_ratio=0.0),
)
