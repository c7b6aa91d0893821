# Mask R-CNN with CoaT-Small on COCO 2017, 3x schedule: 36 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/mask_rcnn_coat_s_3x_coco.py 8
# Published (the authors' repository, not measured here): box AP 49.0, mask AP 43.7.
_base_ = [
    "_base_/models/mask_rcnn.py",
    "_base_/datasets/coco_instance.py",
    "_base_/schedules/adamw_3x.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        type="mm_vitbackbones.CoaT",
        arch="small",
        drop_path_rate=0.2,
        init_cfg=dict(
            checkpoint="https://vcl.ucsd.edu/coat/pretrained/coat_small_7479cf9b.pth",
        ),
    ),
    neck=dict(in_channels=[152, 320, 320, 320]),
)
train_dataloader = dict(dataset=dict(pipeline={{_base_.multiscale_pipeline}}))
optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=0.05))
