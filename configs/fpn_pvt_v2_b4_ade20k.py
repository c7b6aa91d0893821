# Semantic FPN with PVTv2-B4 on ADE20K: 40,000 iterations, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/fpn_pvt_v2_b4_ade20k.py 8
# Published (PVTv2 paper, not measured here): mIoU 47.9.
_base_ = [
    "_base_/models/semantic_fpn.py",
    "_base_/datasets/ade20k_segmentation.py",
    "_base_/optimizers/semantic_fpn.py",
    "_base_/schedules/iterations_40k.py",
    "_base_/segmentation_runtime.py",
]

model = dict(backbone=dict(type="mm_vitbackbones.PVTv2", arch="b4"))
