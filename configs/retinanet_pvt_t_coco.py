# RetinaNet with PVT-Tiny on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/retinanet_pvt_t_coco.py 8
# Published (PVT paper, not measured here): box AP 36.7; AP50 56.9, AP75 38.9, small 22.6, medium 38.8, large 50.0.
_base_ = [
    "_base_/models/retinanet.py",
    "_base_/datasets/coco_detection.py",
    "_base_/optimizers/adamw.py",
    "_base_/schedules/epochs_12.py",
    "_base_/default_runtime.py",
]

model = dict(backbone=dict(arch="tiny"))
