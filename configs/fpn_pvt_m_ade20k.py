# Semantic FPN with PVT-Medium on ADE20K: 40,000 iterations, 8 GPUs with 4 images each.
#   tools/dist_train.sh configs/fpn_pvt_m_ade20k.py 8
# Published (the authors' repository, whose recipe this is; not measured here): mIoU 43.5; the paper has 41.6.
_base_ = [
    "_base_/models/semantic_fpn.py",
    "_base_/datasets/ade20k_segmentation.py",
    "_base_/schedules/adamw_poly_40k.py",
    "_base_/segmentation_runtime.py",
]

model = dict(
    backbone=dict(
        arch="medium",
        init_cfg=dict(
            type="Pretrained", checkpoint="https://github.com/whai362/PVT/releases/download/v2/pvt_medium.pth"
        ),
    ),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
train_dataloader = dict(batch_size=4)
auto_scale_lr = dict(base_batch_size=32)
