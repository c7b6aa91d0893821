# Mask R-CNN with Swin-Tiny, from random weights, on the drawn scenes of `mini`: for comparing backbones.
#   python tools/prepare_data.py mini && python tools/train.py configs/mask_rcnn_swin_t_mini.py
# No published result: `mini` is a small set made for trying things out, no benchmark. See docs/embedded_data.md.
_base_ = [
    "_base_/models/mask_rcnn_small.py",
    "_base_/datasets/mini_instance.py",
    "_base_/optimizers/small.py",
    "_base_/schedules/small_7_epochs.py",
    "_base_/default_runtime_small.py",
]

model = dict(
    backbone=dict(type="mm_vitbackbones.Swin"),
    neck=dict(in_channels=[96, 192, 384, 768]),
    roi_head=dict(bbox_head=dict(num_classes=5), mask_head=dict(num_classes=5)),
)
