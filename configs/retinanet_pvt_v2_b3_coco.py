# RetinaNet with PVTv2-B3 on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/retinanet_pvt_v2_b3_coco.py 8
# Published (PVTv2 paper, not measured here): box AP 45.9; AP50 66.8, AP75 49.3, small 28.6, medium 49.8, large 61.4.
_base_ = [
    "_base_/models/retinanet.py",
    "_base_/datasets/coco_detection.py",
    "_base_/optimizers/adamw.py",
    "_base_/schedules/epochs_12.py",
    "_base_/default_runtime.py",
]

model = dict(backbone=dict(type="mm_vitbackbones.PVTv2", arch="b3"))
