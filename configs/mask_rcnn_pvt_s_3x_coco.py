# Mask R-CNN with PVT-Small on COCO 2017, 3x schedule: 36 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/mask_rcnn_pvt_s_3x_coco.py 8
# Published (PVT paper, not measured here): box AP 43.0, mask AP 39.9.
_base_ = [
    "_base_/models/mask_rcnn.py",
    "_base_/datasets/coco_instance.py",
    "_base_/optimizers/pvt_mask_rcnn.py",
    "_base_/schedules/epochs_36.py",
    "_base_/default_runtime.py",
]

model = dict(backbone=dict(arch="small"))
train_dataloader = dict(dataset=dict(pipeline={{_base_.short_side_pipeline}}))
