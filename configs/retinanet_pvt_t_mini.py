# RetinaNet with PVT-Tiny, from random weights, on the drawn scenes of `mini`: for comparing backbones.
#   python tools/prepare_data.py mini && python tools/train.py configs/retinanet_pvt_t_mini.py --amp
# No published result: `mini` is a small set made for trying things out, no benchmark. See docs/embedded_data.md.
_base_ = [
    "_base_/models/retinanet.py",
    "_base_/datasets/mini_detection.py",
    "_base_/schedules/adamw_cosine_small.py",
    "_base_/default_runtime.py",
]

# Objects are 17 to 140 pixels wide: three levels, anchors from 24 pixels.
model = dict(
    backbone=dict(
        arch="tiny",
        drop_path_rate=0.0,
        init_cfg=[dict(type="mm_vitbackbones.FromScratch")],
    ),
    neck=dict(out_channels=128, num_outs=3),
    bbox_head=dict(
        num_classes=5,
        in_channels=128,
        feat_channels=128,
        stacked_convs=2,
        norm_cfg=dict(type="GN", num_groups=16, requires_grad=True),
        anchor_generator=dict(octave_base_scale=3, strides=[8, 16, 32]),
    ),
)

default_hooks = dict(logger=dict(interval=20))
log_processor = dict(window_size=20)
