# RetinaNet with PVT-Small on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/retinanet_pvt_s_coco.py 8
# Published (PVT paper, not measured here): box AP 40.4; AP50 61.3, AP75 43.0, small 25.0, medium 42.9, large 55.7.
_base_ = [
    "_base_/models/retinanet.py",
    "_base_/datasets/coco_detection.py",
    "_base_/optimizers/adamw.py",
    "_base_/schedules/epochs_12.py",
    "_base_/default_runtime.py",
]

model = dict(backbone=dict(arch="small"))
