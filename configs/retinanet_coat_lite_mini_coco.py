# RetinaNet with CoaT-Lite-Mini on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/retinanet_coat_lite_mini_coco.py 8
# No published result: by the recipe of CoaT's other detectors, untested.
_base_ = [
    "_base_/models/retinanet.py",
    "_base_/datasets/coco_detection.py",
    "_base_/schedules/adamw_1x.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        type="mm_vitbackbones.CoaT",
        arch="lite_mini",
        drop_path_rate=0.0,
        init_cfg=dict(
            checkpoint="https://vcl.ucsd.edu/coat/pretrained/coat_lite_mini_6b4a8ae5.pth",
        ),
    ),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=0.05))
