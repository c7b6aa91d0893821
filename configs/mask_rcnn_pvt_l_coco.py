# Mask R-CNN with PVT-Large on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 1 image each.
#   tools/dist_train.sh configs/mask_rcnn_pvt_l_coco.py 8
# Published (PVT paper, not measured here): box AP 42.9, mask AP 39.5.
_base_ = [
    "_base_/models/mask_rcnn.py",
    "_base_/datasets/coco_instance.py",
    "_base_/optimizers/pvt_mask_rcnn.py",
    "_base_/schedules/epochs_12.py",
    "_base_/default_runtime.py",
]

model = dict(backbone=dict(arch="large", drop_path_rate=0.0))
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(optimizer=dict(lr=2e-4 / 1.4))
auto_scale_lr = dict(base_batch_size=8)
