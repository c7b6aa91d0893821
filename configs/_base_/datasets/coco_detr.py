# COCO boxes as DETR's successors take them: many scales and crops, and images without objects, too.
_base_ = "coco_detection.py"

train_dataloader = dict(
    dataset=dict(filter_cfg=dict(filter_empty_gt=False), pipeline={{_base_.multiscale_pipeline}}),
)
