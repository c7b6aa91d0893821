# DINO with Swin-Large on COCO 2017, five scales: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/dino_swin_l_coco.py 8
# Published (MMDetection, not measured here): box AP 57.2.
# Windows of 12, from ImageNet-22k at 384 pixels. Blocks are computed again in the backward pass.
_base_ = [
    "_base_/models/dino_5scale.py",
    "_base_/datasets/coco_detr.py",
    "_base_/optimizers/dino.py",
    "_base_/schedules/epochs_12_detr.py",
    "_base_/default_runtime.py",
]

weights = dict(checkpoint="imagenet22k_384")
model = dict(
    backbone=dict(type="mm_vitbackbones.Swin", arch="large_w12", drop_path_rate=0.2, with_cp="all", init_cfg=weights),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
