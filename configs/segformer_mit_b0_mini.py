# SegFormer-B0, from random weights, on the drawn scenes of `mini`: for comparing backbones and heads.
#   python tools/prepare_data.py mini && python tools/train.py configs/segformer_mit_b0_mini.py
# No published result: `mini` is a small set made for trying things out, no benchmark. See docs/embedded_data.md.
_base_ = [
    "_base_/models/segformer_small.py",
    "_base_/datasets/mini_segmentation.py",
    "_base_/optimizers/small_segmentation.py",
    "_base_/schedules/small_2200_iterations.py",
    "_base_/segmentation_runtime_small.py",
]

model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}),
    backbone=dict(arch="b0"),
    decode_head=dict(in_channels=[32, 64, 160, 256], channels=256, num_classes={{_base_.num_classes}}),
)
