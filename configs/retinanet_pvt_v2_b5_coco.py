# RetinaNet with PVTv2-B5 on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 1 image each.
#   tools/dist_train.sh configs/retinanet_pvt_v2_b5_coco.py 8
# Published (PVTv2 paper, not measured here): box AP 46.2; AP50 67.1, AP75 49.5, small 28.5, medium 50.0, large 62.5.
_base_ = [
    "_base_/models/retinanet.py",
    "_base_/datasets/coco_detection.py",
    "_base_/optimizers/adamw.py",
    "_base_/schedules/epochs_12.py",
    "_base_/default_runtime.py",
]

model = dict(backbone=dict(type="mm_vitbackbones.PVTv2", arch="b5"))
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(optimizer=dict(lr=1e-4 / 1.4))
auto_scale_lr = dict(base_batch_size=8)
