# Cascade Mask R-CNN with Swin-Base on COCO 2017, 3x schedule: 36 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/cascade_mask_rcnn_swin_b_3x_coco.py 8 --amp fp16
# Published (the authors' repository, not measured here): box AP 51.9, mask AP 45.0.
_base_ = [
    "_base_/models/cascade_mask_rcnn.py",
    "_base_/datasets/coco_instance.py",
    "_base_/optimizers/swin.py",
    "_base_/schedules/epochs_36.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mm_vitbackbones.Swin", arch="base", drop_path_rate=0.3),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
train_dataloader = dict(dataset=dict(pipeline={{_base_.multiscale_pipeline}}))
