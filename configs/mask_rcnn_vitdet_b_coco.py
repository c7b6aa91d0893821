# Mask R-CNN with ViTDet-Base on COCO 2017: 184,375 iterations (100 epochs), 8 GPUs with 8 images each.
#   tools/dist_train.sh configs/mask_rcnn_vitdet_b_coco.py 8 --amp fp16
# Published (the authors' repository, not measured here): box AP 51.6, mask AP 45.9.
_base_ = [
    "_base_/models/mask_rcnn_vitdet.py",
    "_base_/datasets/coco_instance_vitdet.py",
    "_base_/optimizers/vitdet.py",
    "_base_/schedules/iterations_184375.py",
    "_base_/default_runtime_iterations.py",
]
