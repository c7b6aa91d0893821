# RetinaNet with PVTv2-B1 on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/retinanet_pvt_v2_b1_coco.py 8
# Published (PVTv2 paper, not measured here): box AP 41.2; AP50 61.9, AP75 43.9, small 25.4, medium 44.5, large 54.3.
_base_ = [
    "_base_/models/retinanet.py",
    "_base_/datasets/coco_detection.py",
    "_base_/optimizers/adamw.py",
    "_base_/schedules/epochs_12.py",
    "_base_/default_runtime.py",
]

model = dict(backbone=dict(type="mm_vitbackbones.PVTv2", arch="b1"))
