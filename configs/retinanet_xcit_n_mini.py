# RetinaNet with XCiT-Nano, from random weights, on the drawn scenes of `mini`: for comparing backbones.
#   python tools/prepare_data.py mini && python tools/train.py configs/retinanet_xcit_n_mini.py --amp
# No published result: `mini` is a small set made for trying things out, no benchmark. See docs/embedded_data.md.
_base_ = [
    "_base_/models/retinanet_small.py",
    "_base_/datasets/mini_detection.py",
    "_base_/optimizers/small.py",
    "_base_/schedules/small_7_epochs.py",
    "_base_/default_runtime_small.py",
]

model = dict(
    backbone=dict(type="mm_vitbackbones.XCiT", arch="nano_12_p16"),
    neck=dict(in_channels=[128, 128, 128], out_channels=128),
    bbox_head=dict(num_classes=5, in_channels=128, feat_channels=128),
)
