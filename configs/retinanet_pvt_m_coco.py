# RetinaNet with PVT-Medium on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/retinanet_pvt_m_coco.py 8
# Published (PVT paper, not measured here): box AP 41.9; AP50 63.1, AP75 44.3, small 25.0, medium 44.9, large 57.6.
_base_ = [
    "_base_/models/retinanet.py",
    "_base_/datasets/coco_detection.py",
    "_base_/optimizers/adamw.py",
    "_base_/schedules/epochs_12.py",
    "_base_/default_runtime.py",
]

model = dict(backbone=dict(arch="medium", drop_path_rate=0.0))
