# RetinaNet with PVTv2-B2-Li on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/retinanet_pvt_v2_b2_li_coco.py 8
# Published (PVTv2 paper, not measured here): box AP 43.6; AP50 64.7, AP75 46.8, small 28.3, medium 47.6, large 57.4.
_base_ = [
    "_base_/models/retinanet.py",
    "_base_/datasets/coco_detection.py",
    "_base_/optimizers/adamw.py",
    "_base_/schedules/epochs_12.py",
    "_base_/default_runtime.py",
]

model = dict(backbone=dict(type="mm_vitbackbones.PVTv2", arch="b2_li"))
