# RetinaNet with Swin-Base on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/retinanet_swin_b_coco.py 8
# No published result: by Swin's recipe, untested.
_base_ = [
    "_base_/models/retinanet.py",
    "_base_/datasets/coco_detection.py",
    "_base_/optimizers/swin.py",
    "_base_/schedules/epochs_12.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mm_vitbackbones.Swin", arch="base", drop_path_rate=0.3),
    neck=dict(in_channels=[256, 512, 1024]),
)
