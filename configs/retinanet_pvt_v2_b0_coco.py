# RetinaNet with PVTv2-B0 on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/retinanet_pvt_v2_b0_coco.py 8
# Published (PVTv2 paper, not measured here): box AP 37.2; AP50 57.2, AP75 39.5, small 23.1, medium 40.4, large 49.7.
_base_ = [
    "_base_/models/retinanet.py",
    "_base_/datasets/coco_detection.py",
    "_base_/optimizers/adamw.py",
    "_base_/schedules/epochs_12.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mm_vitbackbones.PVTv2", arch="b0"),
    neck=dict(in_channels=[64, 160, 256]),
)
