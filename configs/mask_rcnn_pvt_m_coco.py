# Mask R-CNN with PVT-Medium on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/mask_rcnn_pvt_m_coco.py 8
# Published (PVT paper, not measured here): box AP 42.0, mask AP 39.0.
_base_ = [
    "_base_/models/mask_rcnn.py",
    "_base_/datasets/coco_instance.py",
    "_base_/optimizers/pvt_mask_rcnn.py",
    "_base_/schedules/epochs_12.py",
    "_base_/default_runtime.py",
]

model = dict(backbone=dict(arch="medium", drop_path_rate=0.0))
