# Semantic FPN with PVT-Tiny on ADE20K: 40,000 iterations, 8 GPUs with 4 images each.
#   tools/dist_train.sh configs/fpn_pvt_t_ade20k.py 8
# Published (the authors' repository, whose recipe this is; not measured here): mIoU 36.6; the paper has 35.7.
_base_ = [
    "_base_/models/semantic_fpn.py",
    "_base_/datasets/ade20k_segmentation.py",
    "_base_/optimizers/semantic_fpn_pvt.py",
    "_base_/schedules/iterations_40k.py",
    "_base_/segmentation_runtime.py",
]

model = dict(backbone=dict(arch="tiny"))
train_dataloader = dict(batch_size=4)
auto_scale_lr = dict(base_batch_size=32)
