# Mask R-CNN with XCiT-Tiny-12, patches of 16 pixels, on COCO 2017, 3x: 36 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/mask_rcnn_xcit_t12_p16_3x_coco.py 8 --amp fp16
# Published (the authors' repository, not measured here): box AP 42.7, mask AP 38.5.
_base_ = [
    "_base_/models/mask_rcnn_xcit.py",
    "_base_/datasets/coco_instance.py",
    "_base_/optimizers/xcit.py",
    "_base_/schedules/epochs_36.py",
    "_base_/default_runtime.py",
]

model = dict(backbone=dict(arch="tiny_12_p16", drop_path_rate=0.0), neck=dict(in_channels=[192] * 4))
train_dataloader = dict(dataset=dict(pipeline={{_base_.multiscale_pipeline}}))
