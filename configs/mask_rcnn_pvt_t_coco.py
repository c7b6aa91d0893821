# Mask R-CNN with PVT-Tiny on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/mask_rcnn_pvt_t_coco.py 8
# Published (PVT paper, not measured here): box AP 36.7, mask AP 35.1.
_base_ = [
    "_base_/models/mask_rcnn.py",
    "_base_/datasets/coco_instance.py",
    "_base_/optimizers/pvt_mask_rcnn.py",
    "_base_/schedules/epochs_12.py",
    "_base_/default_runtime.py",
]

model = dict(backbone=dict(arch="tiny"))
