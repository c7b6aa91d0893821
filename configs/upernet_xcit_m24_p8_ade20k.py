# UPerNet with XCiT-Medium-24, patches of 8 pixels, on ADE20K: 160,000 iterations, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/upernet_xcit_m24_p8_ade20k.py 8
# Published (the authors' repository, not measured here): mIoU 48.4.
_base_ = [
    "_base_/models/upernet_xcit.py",
    "_base_/datasets/ade20k_unaligned.py",
    "_base_/optimizers/ade20k_xcit.py",
    "_base_/schedules/iterations_160k.py",
    "_base_/segmentation_runtime.py",
]

model = dict(
    backbone=dict(arch="medium_24_p8", drop_path_rate=0.15),
    decode_head=dict(in_channels=[512] * 4),
    auxiliary_head=dict(in_channels=512),
)
