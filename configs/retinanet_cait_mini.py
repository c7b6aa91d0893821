# RetinaNet with a CaiT of six blocks, from random weights, on the drawn scenes of `mini`: for comparing backbones.
#   python tools/prepare_data.py mini && python tools/train.py configs/retinanet_cait_mini.py --amp
# No published result: `mini` is a small set made for trying things out, no benchmark. See docs/embedded_data.md.
# The network is a quarter as deep as CaiT-XXS24.
_base_ = [
    "_base_/models/retinanet_small.py",
    "_base_/datasets/mini_detection.py",
    "_base_/optimizers/small.py",
    "_base_/schedules/small_7_epochs.py",
    "_base_/default_runtime_small.py",
]

small = dict(dim=192, num_heads=4, depth=6)
model = dict(
    backbone=dict(type="mm_vitbackbones.CaiT", arch={"_delete_": True, **small}, pyramid="taps"),
    neck=dict(in_channels=[192, 192, 192], out_channels=128),
    bbox_head=dict(num_classes=5, in_channels=128, feat_channels=128),
)
