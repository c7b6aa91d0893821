# UPerNet with Swin-Small on ADE20K: 160,000 iterations, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/upernet_swin_s_ade20k.py 8
# Published (the authors' repository, not measured here): mIoU 47.64, with --tta 49.47.
_base_ = [
    "_base_/models/upernet.py",
    "_base_/datasets/ade20k_segmentation.py",
    "_base_/schedules/adamw_poly_160k.py",
    "_base_/segmentation_runtime.py",
]

model = dict(
    backbone=dict(
        arch="small",
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_small_patch4_window7_224.pth",
        ),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
# Position tables decay no more than norms do.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(relative_position_bias_table=dict(decay_mult=0.0))))
# The published figures are of images whose sides are not rounded.
val_dataloader = dict(dataset=dict(pipeline={{_base_.unaligned_test_pipeline}}))
test_dataloader = dict(dataset=dict(pipeline={{_base_.unaligned_test_pipeline}}))
tta_pipeline = {{_base_.unaligned_tta_pipeline}}
