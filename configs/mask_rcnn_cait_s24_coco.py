# Mask R-CNN with CaiT-S24 and a simple pyramid on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/mask_rcnn_cait_s24_coco.py 8
# No published result: ours, by Swin's recipe, untested.
_base_ = [
    "_base_/models/mask_rcnn.py",
    "_base_/datasets/coco_instance.py",
    "_base_/optimizers/cait.py",
    "_base_/schedules/epochs_12.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mm_vitbackbones.CaiT", arch="s24", pyramid="simple", drop_path_rate=0.1),
    neck=dict(in_channels=[256] * 4),
)
train_dataloader = dict(dataset=dict(pipeline={{_base_.multiscale_pipeline}}))
