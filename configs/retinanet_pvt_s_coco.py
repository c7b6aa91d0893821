# RetinaNet with PVT-Small on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/retinanet_pvt_s_coco.py 8
# Published (PVT paper, not measured here): box AP 40.4; AP50 61.3, AP75 43.0, small 25.0, medium 42.9, large 55.7.
_base_ = [
    "_base_/models/retinanet.py",
    "_base_/datasets/coco_detection.py",
    "_base_/schedules/adamw_1x.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        type="mm_vitbackbones.PVT",
        arch="small",
        init_cfg=dict(checkpoint="https://github.com/whai362/PVT/releases/download/v2/pvt_small.pth"),
    ),
)
