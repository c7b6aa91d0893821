# RetinaNet with DINO's ViT-Tiny, from random weights, on the drawn scenes of `mini`: for comparing backbones.
#   python tools/prepare_data.py mini && python tools/train.py configs/retinanet_dino_t_mini.py --amp
# No published result: `mini` is a small set made for trying things out, no benchmark. See docs/embedded_data.md.
_base_ = [
    "_base_/models/retinanet_small.py",
    "_base_/datasets/mini_detection.py",
    "_base_/optimizers/small.py",
    "_base_/schedules/small_12_epochs.py",
    "_base_/default_runtime_small.py",
]

model = dict(
    backbone=dict(type="mm_vitbackbones.ViT", positions="by_scale", pyramid="simple"),  # 14 x 14 patches of 16 pixels
    neck=dict(in_channels=[256, 256, 256], out_channels=128),
    bbox_head=dict(num_classes=5, in_channels=128, feat_channels=128),
)
