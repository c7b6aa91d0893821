# Mask R-CNN with CoaT-Mini on COCO 2017, 3x schedule: 36 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/mask_rcnn_coat_mini_3x_coco.py 8
# Published (the authors' repository, not measured here): box AP 46.5, mask AP 41.8.
_base_ = [
    "_base_/models/mask_rcnn.py",
    "_base_/datasets/coco_instance.py",
    "_base_/optimizers/coat.py",
    "_base_/schedules/epochs_36.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mm_vitbackbones.CoaT", arch="mini", drop_path_rate=0.0),
    neck=dict(in_channels=[152, 216, 216, 216]),
)
train_dataloader = dict(dataset=dict(pipeline={{_base_.multiscale_pipeline}}))
