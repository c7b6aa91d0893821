# RetinaNet with PVT-Large on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/retinanet_pvt_l_coco.py 8
# Published (PVT paper, not measured here): box AP 42.6; AP50 63.7, AP75 45.4, small 25.8, medium 46.0, large 58.4.
_base_ = [
    "_base_/models/retinanet.py",
    "_base_/datasets/coco_detection.py",
    "_base_/optimizers/adamw.py",
    "_base_/schedules/epochs_12.py",
    "_base_/default_runtime.py",
]

model = dict(backbone=dict(arch="large", drop_path_rate=0.0))
