# Mask R-CNN with PVTv2-B4 on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 1 image each.
#   tools/dist_train.sh configs/mask_rcnn_pvt_v2_b4_coco.py 8
# Published (PVTv2 paper, not measured here): box AP 47.5, mask AP 42.7.
_base_ = [
    "_base_/models/mask_rcnn.py",
    "_base_/datasets/coco_instance.py",
    "_base_/optimizers/pvt_mask_rcnn.py",
    "_base_/schedules/epochs_12.py",
    "_base_/default_runtime.py",
]

model = dict(backbone=dict(type="mm_vitbackbones.PVTv2", arch="b4"))
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(optimizer=dict(lr=2e-4 / 1.4))
auto_scale_lr = dict(base_batch_size=8)
