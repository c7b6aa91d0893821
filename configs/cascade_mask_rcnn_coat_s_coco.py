# Cascade Mask R-CNN with CoaT-Small on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/cascade_mask_rcnn_coat_s_coco.py 8
# Published (the authors' repository, not measured here): box AP 50.4, mask AP 43.5.
_base_ = [
    "_base_/models/cascade_mask_rcnn.py",
    "_base_/datasets/coco_instance.py",
    "_base_/optimizers/coat.py",
    "_base_/schedules/epochs_12.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mm_vitbackbones.CoaT", arch="small", drop_path_rate=0.2),
    neck=dict(in_channels=[152, 320, 320, 320]),
)
train_dataloader = dict(dataset=dict(pipeline={{_base_.multiscale_pipeline}}))
