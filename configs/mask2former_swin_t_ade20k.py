# Mask2Former with Swin-Tiny on ADE20K: 160,000 iterations, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/mask2former_swin_t_ade20k.py 8
# Published (MMSegmentation, not measured here): mIoU 48.66.
_base_ = [
    "_base_/models/mask2former_segmentation.py",
    "_base_/datasets/ade20k_mask2former.py",
    "_base_/optimizers/mask2former_swin.py",
    "_base_/schedules/iterations_160k_power.py",
    "_base_/segmentation_runtime.py",
]

model = dict(
    backbone=dict(type="mm_vitbackbones.Swin", arch="tiny", drop_path_rate=0.3),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
)
