# Mask R-CNN with PVTv2-B0 on COCO 2017, 3x schedule: 36 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/mask_rcnn_pvt_v2_b0_3x_coco.py 8 --amp fp16
# Published (the authors' repository, not measured here): box AP 41.6, mask AP 38.2.
_base_ = [
    "_base_/models/mask_rcnn.py",
    "_base_/datasets/coco_instance.py",
    "_base_/optimizers/pvt_v2_3x.py",
    "_base_/schedules/epochs_36.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mm_vitbackbones.PVTv2", arch="b0"),
    neck=dict(in_channels=[32, 64, 160, 256]),
)
train_dataloader = dict(dataset=dict(pipeline={{_base_.multiscale_pipeline}}))
