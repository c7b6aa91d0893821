# RetinaNet with MiT-B0 on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/retinanet_mit_b0_coco.py 8
# No published result: by PVT's recipe, untested.
# The weights of MiT keep NVIDIA's non-commercial terms.
_base_ = [
    "_base_/models/retinanet.py",
    "_base_/datasets/coco_detection.py",
    "_base_/optimizers/adamw.py",
    "_base_/schedules/epochs_12.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mm_vitbackbones.MiT", arch="b0"),
    neck=dict(in_channels=[64, 160, 256]),
)
