# UPerNet with DeiT-Base on ADE20K: 160,000 iterations, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/upernet_deit_b_ade20k.py 8
# Published (MMSegmentation, not measured here): mIoU 45.46, with --tta 47.16.
_base_ = [
    "_base_/models/upernet_vit.py",
    "_base_/datasets/ade20k_unaligned.py",
    "_base_/optimizers/ade20k_vit.py",
    "_base_/schedules/iterations_160k.py",
    "_base_/segmentation_runtime.py",
]

model = dict(
    data_preprocessor=dict(test_cfg=dict(size_divisor=16)),
    backbone=dict(pyramid=None),
    neck=dict(type="MultiLevelNeck", in_channels=[768] * 4, out_channels=768, scales=[4, 2, 1, 0.5]),
    auxiliary_head=dict(in_index=3),
)
