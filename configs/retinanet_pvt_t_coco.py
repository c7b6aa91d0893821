# RetinaNet with PVT-Tiny on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/retinanet_pvt_t_coco.py 8
# Published (PVT paper, not measured here): box AP 36.7; AP50 56.9, AP75 38.9, small 22.6, medium 38.8, large 50.0.
_base_ = [
    "_base_/models/retinanet.py",
    "_base_/datasets/coco_detection.py",
    "_base_/schedules/adamw_1x.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        type="mm_vitbackbones.PVT",
        arch="tiny",
        init_cfg=dict(checkpoint="https://github.com/whai362/PVT/releases/download/v2/pvt_tiny.pth"),
    ),
)
