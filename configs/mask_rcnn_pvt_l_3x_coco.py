# Mask R-CNN with PVT-Large on COCO 2017, 3x schedule: 36 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/mask_rcnn_pvt_l_3x_coco.py 8
# Published (PVT paper, not measured here): box AP 44.5, mask AP 40.7.
_base_ = [
    "_base_/models/mask_rcnn.py",
    "_base_/datasets/coco_instance.py",
    "_base_/optimizers/pvt_mask_rcnn.py",
    "_base_/schedules/epochs_36.py",
    "_base_/default_runtime.py",
]

model = dict(backbone=dict(arch="large", drop_path_rate=0.0))
train_dataloader = dict(dataset=dict(pipeline={{_base_.short_side_pipeline}}))
