# DPT with a frozen DINOv2-Base on ADE20K: 160,000 iterations, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/dpt_dinov2_b_ade20k.py 8
# No published result: ours, untested.
_base_ = [
    "_base_/models/dpt.py",
    "_base_/datasets/ade20k_unaligned.py",
    "_base_/optimizers/ade20k_frozen.py",
    "_base_/schedules/iterations_160k.py",
    "_base_/segmentation_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=(518, 518), test_cfg=dict(size_divisor=14)),
    backbone=dict(
        type="mm_vitbackbones.DINOv2", frozen_stages="all", final_norm=False, init_cfg=dict(checkpoint="lvd142m")
    ),
)
