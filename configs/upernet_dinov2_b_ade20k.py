# UPerNet with a frozen DINOv2-Base on ADE20K: 160,000 iterations, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/upernet_dinov2_b_ade20k.py 8
# No published result: ours, untested.
_base_ = [
    "_base_/models/upernet_vit.py",
    "_base_/datasets/ade20k_unaligned.py",
    "_base_/optimizers/ade20k_frozen.py",
    "_base_/schedules/iterations_160k.py",
    "_base_/segmentation_runtime.py",
]

model = dict(
    backbone=dict(
        type="mm_vitbackbones.DINOv2", pyramid="taps", frozen_stages="all", init_cfg=dict(checkpoint="lvd142m")
    )
)
