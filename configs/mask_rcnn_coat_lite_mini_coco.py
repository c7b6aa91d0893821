# Mask R-CNN with CoaT-Lite-Mini on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/mask_rcnn_coat_lite_mini_coco.py 8
# Published (the authors' repository, not measured here): box AP 41.4, mask AP 38.0.
_base_ = [
    "_base_/models/mask_rcnn.py",
    "_base_/datasets/coco_instance.py",
    "_base_/optimizers/coat.py",
    "_base_/schedules/epochs_12.py",
    "_base_/default_runtime.py",
]

model = dict(backbone=dict(type="mm_vitbackbones.CoaT", arch="lite_mini", drop_path_rate=0.0))
train_dataloader = dict(dataset=dict(pipeline={{_base_.multiscale_pipeline}}))
