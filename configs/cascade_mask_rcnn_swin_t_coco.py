# Cascade Mask R-CNN with Swin-Tiny on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/cascade_mask_rcnn_swin_t_coco.py 8
# Published (the authors' repository, not measured here): box AP 48.1, mask AP 41.7.
_base_ = [
    "_base_/models/cascade_mask_rcnn.py",
    "_base_/datasets/coco_instance.py",
    "_base_/optimizers/swin.py",
    "_base_/schedules/epochs_12.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mm_vitbackbones.Swin", arch="tiny", drop_path_rate=0.0),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
train_dataloader = dict(dataset=dict(pipeline={{_base_.multiscale_pipeline}}))
