# UPerNet with ViT-Base of MAE on ADE20K: 160,000 iterations, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/upernet_mae_b_ade20k.py 8
# Published (MMSegmentation, not measured here): mIoU 48.13, with --tta 48.7; of a network with relative positions.
# The weights of MAE keep their non-commercial terms.
_base_ = [
    "_base_/models/upernet_vit.py",
    "_base_/datasets/ade20k_unaligned.py",
    "_base_/optimizers/ade20k_mae.py",
    "_base_/schedules/iterations_160k.py",
    "_base_/segmentation_runtime.py",
]

model = dict(
    backbone=dict(pyramid="taps", taps=(3, 5, 7, 11), init_cfg=dict(checkpoint="mae")),
    decode_head=dict(channels=768),
    test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(341, 341)),
)
