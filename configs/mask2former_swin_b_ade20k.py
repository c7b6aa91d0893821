# Mask2Former with Swin-Base on ADE20K: 160,000 iterations, 8 GPUs with 2 images each, crops of 640x640.
#   tools/dist_train.sh configs/mask2former_swin_b_ade20k.py 8
# Published (MMSegmentation, not measured here): mIoU 53.9.
# Windows of 12, from ImageNet-22k at 384 pixels; from `imagenet1k_384` 52.44 were published.
_base_ = [
    "_base_/models/mask2former_segmentation.py",
    "_base_/datasets/ade20k_mask2former_640.py",
    "_base_/optimizers/mask2former_swin.py",
    "_base_/schedules/iterations_160k_power.py",
    "_base_/segmentation_runtime.py",
]

weights = dict(checkpoint="imagenet22k_384")
model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}, test_cfg=None),
    backbone=dict(type="mm_vitbackbones.Swin", arch="base_w12", drop_path_rate=0.3, init_cfg=weights),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
)
