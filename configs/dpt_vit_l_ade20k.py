# DPT with ViT-Large on ADE20K: 160,000 iterations, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/dpt_vit_l_ade20k.py 8
# No published result: MMSegmentation's recipe for ViT-Base, untested.
_base_ = [
    "_base_/models/dpt.py",
    "_base_/datasets/ade20k_unaligned.py",
    "_base_/optimizers/ade20k_vit.py",
    "_base_/schedules/iterations_160k.py",
    "_base_/segmentation_runtime.py",
]

model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(arch="large_384", positions="bilinear", init_cfg=dict(checkpoint="imagenet21k_to_1k_384")),
    decode_head=dict(in_channels=[1024] * 4, widths=(256, 512, 1024, 1024)),
)
