# RetinaNet with PVT-Tiny on COCO 2017, 3x schedule: 36 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/retinanet_pvt_t_3x_coco.py 8
# Published (PVT paper, not measured here): box AP 39.4.
_base_ = [
    "_base_/models/retinanet.py",
    "_base_/datasets/coco_detection.py",
    "_base_/optimizers/adamw.py",
    "_base_/schedules/epochs_36.py",
    "_base_/default_runtime.py",
]

model = dict(backbone=dict(arch="tiny"))
train_dataloader = dict(dataset=dict(pipeline={{_base_.short_side_pipeline}}))
