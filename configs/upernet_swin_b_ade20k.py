# UPerNet with Swin-Base on ADE20K: 160,000 iterations, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/upernet_swin_b_ade20k.py 8
# Published (the authors' repository, not measured here): mIoU 48.13, with --tta 49.72.
_base_ = [
    "_base_/models/upernet.py",
    "_base_/datasets/ade20k_unaligned.py",
    "_base_/optimizers/ade20k_swin.py",
    "_base_/schedules/iterations_160k.py",
    "_base_/segmentation_runtime.py",
]

model = dict(
    backbone=dict(arch="base"),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
