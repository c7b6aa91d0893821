# RetinaNet with PVTv2-B1 on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/retinanet_pvt_v2_b1_coco.py 8
# Published (PVTv2 paper, not measured here): box AP 41.2; AP50 61.9, AP75 43.9, small 25.4, medium 44.5, large 54.3.
_base_ = [
    "_base_/models/retinanet.py",
    "_base_/datasets/coco_detection.py",
    "_base_/schedules/adamw_1x.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        type="mm_vitbackbones.PVTv2",
        arch="b1",
        init_cfg=dict(checkpoint="https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b1.pth"),
    ),
)
