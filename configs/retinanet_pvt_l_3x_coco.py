# RetinaNet with PVT-Large on COCO 2017, 3x schedule: 36 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/retinanet_pvt_l_3x_coco.py 8
# Published (PVT paper, not measured here): box AP 43.4.
_base_ = [
    "_base_/models/retinanet.py",
    "_base_/datasets/coco_detection.py",
    "_base_/schedules/adamw_3x.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        type="mm_vitbackbones.PVT",
        arch="large",
        drop_path_rate=0.0,
        init_cfg=dict(
            checkpoint="https://github.com/whai362/PVT/releases/download/v2/pvt_large.pth",
        ),
    ),
)

train_dataloader = dict(dataset=dict(pipeline={{_base_.short_side_pipeline}}))
