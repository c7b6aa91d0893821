# RetinaNet with a small MViTv2, from random weights, on the drawn scenes of `mini`: for comparing backbones.
#   python tools/prepare_data.py mini && python tools/train.py configs/retinanet_mvit_v2_mini.py --amp
# No published result: `mini` is a small set made for trying things out, no benchmark. See docs/embedded_data.md.
# The network is a third as wide as MViTv2-T, and half as deep.
_base_ = [
    "_base_/models/retinanet_small.py",
    "_base_/datasets/mini_detection.py",
    "_base_/optimizers/small.py",
    "_base_/schedules/small_7_epochs.py",
    "_base_/default_runtime_small.py",
]

small = dict(depths=(1, 1, 2, 1), dims=(32, 64, 128, 256), num_heads=(1, 2, 4, 8))
model = dict(
    backbone=dict(type="mm_vitbackbones.MViTv2", arch={"_delete_": True, **small}),
    neck=dict(in_channels=[64, 128, 256], out_channels=128),
    bbox_head=dict(num_classes=5, in_channels=128, feat_channels=128),
)
