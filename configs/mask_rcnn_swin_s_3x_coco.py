# Mask R-CNN with Swin-Small on COCO 2017, 3x schedule: 36 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/mask_rcnn_swin_s_3x_coco.py 8 --amp fp16
# Published (the authors' repository, not measured here): box AP 48.5, mask AP 43.3.
_base_ = [
    "_base_/models/mask_rcnn.py",
    "_base_/datasets/coco_instance.py",
    "_base_/optimizers/swin.py",
    "_base_/schedules/epochs_36.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mm_vitbackbones.Swin", arch="small", drop_path_rate=0.2),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
train_dataloader = dict(dataset=dict(pipeline={{_base_.multiscale_pipeline}}))
