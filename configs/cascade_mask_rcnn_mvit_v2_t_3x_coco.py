# Cascade Mask R-CNN with MViTv2-Tiny on COCO 2017, 3x: 67,500 iterations, 8 GPUs with 8 images each.
#   tools/dist_train.sh configs/cascade_mask_rcnn_mvit_v2_t_3x_coco.py 8 --amp fp16
# Published (the authors' repository, not measured here): box AP 52.2, mask AP 45.0.
_base_ = [
    "_base_/models/cascade_mask_rcnn_mvit_v2.py",
    "_base_/datasets/coco_instance_iterations.py",
    "_base_/optimizers/mvit_v2.py",
    "_base_/schedules/iterations_67500.py",
    "_base_/default_runtime_67500.py",
]
