# RetinaNet with Swin-Tiny on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/retinanet_swin_t_coco.py 8
# Published (third parties, not measured here): box AP 41.5.
_base_ = [
    "_base_/models/retinanet.py",
    "_base_/datasets/coco_detection.py",
    "_base_/schedules/adamw_1x.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        type="mm_vitbackbones.Swin",
        arch="tiny",
        drop_path_rate=0.2,
        init_cfg=dict(
            checkpoint="https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_tiny_patch4_window7_224.pth",
        ),
    ),
    neck=dict(in_channels=[192, 384, 768]),
)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys=dict(relative_position_bias_table=dict(decay_mult=0.0))),
)
