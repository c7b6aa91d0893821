# SegFormer-B0 on ADE20K: 160,000 iterations, 8 GPUs with 2 images each, crops of 512x512.
#   tools/dist_train.sh configs/segformer_mit_b0_ade20k.py 8
# Published (SegFormer paper, not measured here): mIoU 37.4, with --tta 38.0.
# The weights of MiT keep NVIDIA's non-commercial terms.
_base_ = [
    "_base_/models/segformer.py",
    "_base_/datasets/ade20k_segmentation.py",
    "_base_/optimizers/ade20k_segformer.py",
    "_base_/schedules/iterations_160k.py",
    "_base_/segmentation_runtime.py",
]

model = dict(
    backbone=dict(arch="b0"),
    decode_head=dict(in_channels=[32, 64, 160, 256], channels=256),
)
