# Mask R-CNN with DINOv3-Base and adapters (LoRA) on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/mask_rcnn_dinov3_b_lora_coco.py 8
# No published result: a recipe of this package, untested. The weights are under the DINOv3 License: accept it on their
# page, download them, and add --cfg-options model.backbone.init_cfg.checkpoint=FILE. Adapters need peft.
_base_ = [
    "_base_/models/mask_rcnn.py",
    "_base_/datasets/coco_instance.py",
    "_base_/optimizers/frozen.py",
    "_base_/schedules/epochs_12.py",
    "_base_/default_runtime.py",
]

weights = dict(type="Pretrained", checkpoint="lvd1689m")
adapters = dict(rank=8, alpha=16, targets="attention")
backbone = dict(type="mm_vitbackbones.DINOv3", arch="base", pyramid="simple", adapters=adapters, init_cfg=weights)
model = dict(backbone=dict(backbone, drop_path_rate=0.0), neck=dict(in_channels=[256, 256, 256, 256]))
