# RetinaNet with PVTv2-B0, from random weights, on the aerial photographs of `trees`: the demo.
#   make demo, or: python tools/prepare_data.py trees && python tools/train.py configs/retinanet_pvt_v2_b0_trees.py
# No published result: `trees` is a small set made for trying things out, no benchmark. See docs/embedded_data.md.
_base_ = [
    "_base_/models/retinanet_small.py",
    "_base_/datasets/trees_detection.py",
    "_base_/optimizers/small.py",
    "_base_/schedules/small_12_epochs.py",
    "_base_/default_runtime_small.py",
]
# Crowns are 15 to 120 pixels wide and about round: square anchors.
model = dict(
    backbone=dict(type="mm_vitbackbones.PVTv2", arch="b0"),
    neck=dict(in_channels=[64, 160, 256], out_channels=96),
    bbox_head=dict(num_classes=1, in_channels=96, feat_channels=96, anchor_generator=dict(ratios=[1.0])),
    test_cfg=dict(max_per_img=200),
)
