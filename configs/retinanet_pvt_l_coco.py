# RetinaNet with PVT-Large on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/retinanet_pvt_l_coco.py 8
# Published (PVT paper, not measured here): box AP 42.6; AP50 63.7, AP75 45.4, small 25.8, medium 46.0, large 58.4.
_base_ = [
    "_base_/models/retinanet.py",
    "_base_/datasets/coco_detection.py",
    "_base_/schedules/adamw_1x.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        type="mm_vitbackbones.PVT",
        arch="large",
        drop_path_rate=0.0,
        init_cfg=dict(checkpoint="https://github.com/whai362/PVT/releases/download/v2/pvt_large.pth"),
    ),
)
