# Mask R-CNN with PiT-Small on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/mask_rcnn_pit_s_coco.py 8
# No published result: by PVT's recipe, untested.
# Level 0 starts from random weights: PiT has none.
_base_ = [
    "_base_/models/mask_rcnn.py",
    "_base_/datasets/coco_instance.py",
    "_base_/optimizers/pvt_mask_rcnn.py",
    "_base_/schedules/epochs_12.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mm_vitbackbones.PiT", arch="s"),
    neck=dict(in_channels=[144, 144, 288, 576]),
)
