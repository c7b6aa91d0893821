# The demo: RetinaNet with PVTv2-B0, from random weights, on the aerial photographs of `trees`.
#   make demo, or: python tools/prepare_data.py trees && python tools/train.py configs/retinanet_pvt_v2_b0_trees.py
# No published result: `trees` is a small set made for trying things out, no benchmark. See docs/embedded_data.md.
_base_ = [
    "_base_/models/retinanet.py",
    "_base_/datasets/trees_detection.py",
    "_base_/schedules/adamw_cosine_small.py",
    "_base_/default_runtime.py",
]

# Crowns are 15 to 120 pixels wide and about round: three levels, square anchors from 24 pixels.
model = dict(
    backbone=dict(
        type="mm_vitbackbones.PVTv2",
        arch="b0",
        drop_path_rate=0.0,
        init_cfg=[dict(type="mm_vitbackbones.FromScratch")],
    ),
    neck=dict(in_channels=[64, 160, 256], out_channels=96, num_outs=3),
    bbox_head=dict(
        num_classes=1,
        in_channels=96,
        feat_channels=96,
        stacked_convs=2,
        norm_cfg=dict(type="GN", num_groups=16, requires_grad=True),
        anchor_generator=dict(octave_base_scale=3, ratios=[1.0], strides=[8, 16, 32]),
    ),
    test_cfg=dict(max_per_img=200),
)

default_hooks = dict(logger=dict(interval=20))
log_processor = dict(window_size=20)
