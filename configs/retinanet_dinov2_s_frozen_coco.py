# RetinaNet with DINOv2-Small, frozen, on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/retinanet_dinov2_s_frozen_coco.py 8
# No published result: a recipe of this package, untested.
_base_ = [
    "_base_/models/retinanet.py",
    "_base_/datasets/coco_detection.py",
    "_base_/optimizers/frozen.py",
    "_base_/schedules/epochs_12.py",
    "_base_/default_runtime.py",
]

weights = dict(type="Pretrained", checkpoint="lvd142m")
backbone = dict(type="mm_vitbackbones.DINOv2", arch="small", pyramid="simple", frozen_stages="all", init_cfg=weights)
model = dict(backbone=dict(backbone, drop_path_rate=0.0), neck=dict(in_channels=[256, 256, 256]))
