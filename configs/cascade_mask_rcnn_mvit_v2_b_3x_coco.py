# Cascade Mask R-CNN with MViTv2-Base on COCO 2017, 3x: 67,500 iterations, 8 GPUs with 8 images each.
#   tools/dist_train.sh configs/cascade_mask_rcnn_mvit_v2_b_3x_coco.py 8 --amp fp16
# Published (the authors' repository, not measured here): box AP 54.1, mask AP 46.7.
_base_ = [
    "_base_/models/cascade_mask_rcnn_mvit_v2.py",
    "_base_/datasets/coco_instance_iterations.py",
    "_base_/optimizers/mvit_v2.py",
    "_base_/schedules/iterations_67500.py",
    "_base_/default_runtime_67500.py",
]

model = dict(backbone=dict(arch="base", drop_path_rate=0.4))
