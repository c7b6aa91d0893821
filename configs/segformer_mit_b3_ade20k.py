# SegFormer-B3 on ADE20K: 160,000 iterations, 8 GPUs with 2 images each, crops of 512x512.
#   tools/dist_train.sh configs/segformer_mit_b3_ade20k.py 8
# Published (SegFormer paper, not measured here): mIoU 49.4, with --tta 50.0.
# The weights of MiT keep NVIDIA's non-commercial terms.
_base_ = [
    "_base_/models/segformer.py",
    "_base_/datasets/ade20k_segmentation.py",
    "_base_/optimizers/ade20k_segformer.py",
    "_base_/schedules/iterations_160k.py",
    "_base_/segmentation_runtime.py",
]

model = dict(
    backbone=dict(arch="b3"),
    decode_head=dict(in_channels=[64, 128, 320, 512], channels=768),
)
