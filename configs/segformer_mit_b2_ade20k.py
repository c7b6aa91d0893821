# SegFormer-B2 on ADE20K: 160,000 iterations, 8 GPUs with 2 images each, crops of 512x512.
#   tools/dist_train.sh configs/segformer_mit_b2_ade20k.py 8
# Published (SegFormer paper, not measured here): mIoU 46.5, with --tta 47.5.
# The weights of MiT keep NVIDIA's non-commercial terms.
_base_ = [
    "_base_/models/segformer.py",
    "_base_/datasets/ade20k_segmentation.py",
    "_base_/optimizers/ade20k_segformer.py",
    "_base_/schedules/iterations_160k.py",
    "_base_/segmentation_runtime.py",
]

model = dict(
    backbone=dict(arch="b2"),
    decode_head=dict(in_channels=[64, 128, 320, 512], channels=768),
)
