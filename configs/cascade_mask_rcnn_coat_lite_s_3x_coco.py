# Cascade Mask R-CNN with CoaT-Lite-Small on COCO 2017, 3x schedule: 36 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/cascade_mask_rcnn_coat_lite_s_3x_coco.py 8
# Published (the authors' repository, not measured here): box AP 48.9, mask AP 42.6.
_base_ = [
    "_base_/models/cascade_mask_rcnn.py",
    "_base_/datasets/coco_instance.py",
    "_base_/optimizers/coat.py",
    "_base_/schedules/epochs_36.py",
    "_base_/default_runtime.py",
]

model = dict(backbone=dict(type="mm_vitbackbones.CoaT", arch="lite_small", drop_path_rate=0.0))
train_dataloader = dict(dataset=dict(pipeline={{_base_.multiscale_pipeline}}))
