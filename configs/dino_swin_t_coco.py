# DINO with Swin-Tiny on COCO 2017, four scales: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/dino_swin_t_coco.py 8
# Published (detrex, not measured here): box AP 51.3.
_base_ = [
    "_base_/models/dino.py",
    "_base_/datasets/coco_detr.py",
    "_base_/optimizers/dino.py",
    "_base_/schedules/epochs_12_detr.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mm_vitbackbones.Swin", arch="tiny", drop_path_rate=0.1),
    neck=dict(in_channels=[192, 384, 768]),
)
