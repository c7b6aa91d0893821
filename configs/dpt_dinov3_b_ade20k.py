# DPT with a frozen DINOv3-Base on ADE20K: 160,000 iterations, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/dpt_dinov3_b_ade20k.py 8
# No published result: ours, untested.
# The weights are under the DINOv3 License, to be accepted on their page: --cfg-options
# model.backbone.init_cfg.checkpoint=FILE takes the file.
_base_ = [
    "_base_/models/dpt.py",
    "_base_/datasets/ade20k_unaligned.py",
    "_base_/optimizers/ade20k_frozen.py",
    "_base_/schedules/iterations_160k.py",
    "_base_/segmentation_runtime.py",
]

model = dict(backbone=dict(type="mm_vitbackbones.DINOv3", frozen_stages="all", init_cfg=dict(checkpoint="lvd1689m")))
