# Cascade Mask R-CNN with Swin-Small on COCO 2017, 3x schedule: 36 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/cascade_mask_rcnn_swin_s_3x_coco.py 8 --amp fp16
# Published (the authors' repository, not measured here): box AP 51.9, mask AP 45.0.
_base_ = [
    "_base_/models/cascade_mask_rcnn.py",
    "_base_/datasets/coco_instance.py",
    "_base_/schedules/adamw_3x.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        type="mm_vitbackbones.Swin",
        arch="small",
        drop_path_rate=0.2,
        init_cfg=dict(
            checkpoint="https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_small_patch4_window7_224.pth",
        ),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
train_dataloader = dict(dataset=dict(pipeline={{_base_.multiscale_pipeline}}))
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys=dict(relative_position_bias_table=dict(decay_mult=0.0))),
)
