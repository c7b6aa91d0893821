# RetinaNet from random weights on small objects: three levels, anchors from 24 pixels, a head of two convolutions.
_base_ = "retinanet.py"

model = dict(
    backbone=dict(drop_path_rate=0.0, init_cfg=[dict(type="mm_vitbackbones.FromScratch")]),
    neck=dict(num_outs=3),
    bbox_head=dict(
        stacked_convs=2,
        norm_cfg=dict(type="GN", num_groups=16, requires_grad=True),
        anchor_generator=dict(octave_base_scale=3, strides=[8, 16, 32]),
    ),
)
