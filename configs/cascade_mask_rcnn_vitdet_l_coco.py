# Cascade Mask R-CNN with ViTDet-Large on COCO 2017: 184,375 iterations (100 epochs), 8 GPUs with 8 images each.
#   tools/dist_train.sh configs/cascade_mask_rcnn_vitdet_l_coco.py 8 --amp fp16
# Published (the authors' repository, not measured here): box AP 57.6, mask AP 50.0.
_base_ = [
    "_base_/models/cascade_mask_rcnn_vitdet.py",
    "_base_/datasets/coco_instance_vitdet.py",
    "_base_/optimizers/vitdet.py",
    "_base_/schedules/iterations_184375.py",
    "_base_/default_runtime_iterations.py",
]

model = dict(backbone=dict(arch="large", drop_path_rate=0.4))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.8))
