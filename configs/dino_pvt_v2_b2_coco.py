# DINO with PVTv2-B2 on COCO 2017, four scales: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/dino_pvt_v2_b2_coco.py 8
# No published result: ours, by DINO's recipe, untested.
_base_ = [
    "_base_/models/dino.py",
    "_base_/datasets/coco_detr.py",
    "_base_/optimizers/dino.py",
    "_base_/schedules/epochs_12_detr.py",
    "_base_/default_runtime.py",
]

model = dict(backbone=dict(type="mm_vitbackbones.PVTv2", arch="b2"))
