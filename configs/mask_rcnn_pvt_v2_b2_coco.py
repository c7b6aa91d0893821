# Mask R-CNN with PVTv2-B2 on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/mask_rcnn_pvt_v2_b2_coco.py 8
# Published (PVTv2 paper, not measured here): box AP 45.3, mask AP 41.2.
_base_ = [
    "_base_/models/mask_rcnn.py",
    "_base_/datasets/coco_instance.py",
    "_base_/schedules/adamw_1x.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        type="mm_vitbackbones.PVTv2",
        arch="b2",
        drop_path_rate=0.1,
        init_cfg=dict(
            checkpoint="https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b2.pth",
        ),
    ),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
