# RetinaNet with PVTv2-B2 on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/retinanet_pvt_v2_b2_coco.py 8
# Published (PVTv2 paper, not measured here): box AP 44.6; AP50 65.6, AP75 47.6, small 27.4, medium 48.8, large 58.6.
_base_ = [
    "_base_/models/retinanet.py",
    "_base_/datasets/coco_detection.py",
    "_base_/optimizers/adamw.py",
    "_base_/schedules/epochs_12.py",
    "_base_/default_runtime.py",
]

model = dict(backbone=dict(type="mm_vitbackbones.PVTv2", arch="b2"))
