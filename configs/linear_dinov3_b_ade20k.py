# A linear map on a frozen DINOv3-Base on ADE20K: 40,000 iterations, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/linear_dinov3_b_ade20k.py 8
# Published (DINOv3's model card, not measured here): mIoU 51.8.
# The weights are under the DINOv3 License, to be accepted on their page: --cfg-options
# model.backbone.init_cfg.checkpoint=FILE takes the file.
_base_ = [
    "_base_/models/linear.py",
    "_base_/datasets/ade20k_unaligned.py",
    "_base_/optimizers/ade20k_linear_dinov3.py",
    "_base_/schedules/iterations_40k_cosine.py",
    "_base_/segmentation_runtime.py",
]

model = dict(
    backbone=dict(type="mm_vitbackbones.DINOv3", arch="base", init_cfg=dict(checkpoint="lvd1689m")),
    decode_head=dict(in_channels=[768]),
)
