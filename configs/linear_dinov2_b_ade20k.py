# A linear map on a frozen DINOv2-Base on ADE20K: 40,000 iterations, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/linear_dinov2_b_ade20k.py 8
# Published (DINOv2 paper, not measured here): mIoU 47.3.
_base_ = [
    "_base_/models/linear_dinov2.py",
    "_base_/datasets/ade20k_unaligned.py",
    "_base_/optimizers/ade20k_linear.py",
    "_base_/schedules/iterations_40k_linear.py",
    "_base_/segmentation_runtime.py",
]

model = dict(backbone=dict(arch="base"), decode_head=dict(in_channels=[768]))
